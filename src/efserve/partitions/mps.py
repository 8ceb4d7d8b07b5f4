"""The life of MPS daemons on this machine: start, look, stop, and leave nothing behind, whatever went wrong.

One daemon per GPU keeps a fault on its GPU; a single daemon over all of them is the other way. What is done here and
what start_MPS.sh does can follow one another in the same run directory.
"""

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from efserve.errors import MpsFailed, MpsHangs
from efserve.partitions import mps_lease
from efserve.partitions.compute_mode import ComputeModes, ListedGpu
from efserve.partitions.mps_control import ListedClient, MpsControl, ServerStatus
from efserve.partitions.mps_directory import ALL, RunDirectory, user_of
from efserve.partitions.mps_lease import Lease
from efserve.partitions.nvidia_programs import NvidiaPrograms, run_nvidia

log = logging.getLogger(__name__)

_FILES = 16384  # that NVIDIA asks for, for a daemon with 48 clients
_SIGNAL_S = 5.0  # at most, from SIGTERM to SIGKILL, and from there to giving up
_GONE_POLL_S = 0.05


class DaemonState(Enum):
    """What a daemon does when it is asked something."""

    RUNNING = "running"
    ABSENT = "absent"
    HANGING = "hanging"


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that runs now."""

    unit: str
    pipe_directory: str
    is_new: bool  # started by this call; else it ran already


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A server of a daemon: it exists once a client has come."""

    pid: int
    uid: int | None  # None: it runs where its process cannot be seen
    status: ServerStatus
    clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MpsFacts:
    """MPS on one GPU."""

    index: int
    uuid: str
    unit: str
    state: DaemonState
    compute_mode: str
    kept_mode: str  # to be restored by stop; empty: none
    pipe_directory: str
    processes: tuple[int, ...]
    servers: tuple[ServerFacts, ...]
    listed: tuple[ListedClient, ...]  # the clients with their programs, where the daemon tells them


class MpsDaemons:
    """Daemons in one run directory. Knows nothing between two calls: what there is, is on disk and in processes."""

    def __init__(self, directory: RunDirectory, programs: NvidiaPrograms) -> None:
        self.directory = directory
        self.programs = programs
        self._modes = ComputeModes(programs, directory)

    def __repr__(self) -> str:
        return f"<MpsDaemons {self.directory!r}>"

    def control(self, unit: str) -> MpsControl:
        """For questions to the daemon of a unit."""
        return MpsControl(self.programs, self.directory.pipes(unit))

    async def state(self, unit: str) -> DaemonState:
        """Whether the daemon of a unit runs and answers."""
        if not await asyncio.to_thread(self.directory.pipes(unit).is_dir):
            return DaemonState.ABSENT
        try:
            await self.control(unit).servers()
        except MpsHangs:
            return DaemonState.HANGING
        except MpsFailed:
            return DaemonState.ABSENT
        return DaemonState.RUNNING

    # Start

    async def start(self, gpus: Sequence[ListedGpu], *, single: bool = False) -> tuple[Started, ...]:
        """Has a daemon run for each GPU, or one for all, until somebody stops it; daemons that run are left alone.

        Raises MpsFailed with the reason; the daemon that did not start has left nothing then, those before it run.
        """
        units = [(ALL, tuple(gpus))] if single else [(gpu.uuid, (gpu,)) for gpu in gpus]
        await asyncio.to_thread(self.directory.make, tuple(unit for unit, _ in units))
        started = []
        async with self._locked():
            await self._exclude([unit for unit, _ in units])
            for unit, served in units:
                started.append(await self._start_unit(unit, served))
                mps_lease.hand_to_a_person(self.directory.pipes(unit))
        return tuple(started)

    async def use(self, gpu: ListedGpu) -> tuple[str, Lease | None]:
        """Has a daemon run for a GPU as long as it is used: answers its unit, and what `leave` is to be given.

        A single daemon that runs already serves. Raises MpsFailed as `start` does, and where the daemon's server is
        another user's.
        """
        await asyncio.to_thread(self.directory.make, (gpu.uuid,))
        async with self._locked():
            unit = self.directory.unit_of(gpu.uuid)
            if unit == ALL and await self.state(ALL) is DaemonState.ABSENT:
                await self._stop_unit(ALL)
                unit = gpu.uuid
            started = await self._start_unit(unit, (gpu,))
            if not started.is_new:
                await self._check_user(unit)
            return unit, mps_lease.take(self.directory.pipes(unit), new=started.is_new)

    async def restart(self, gpus: Sequence[ListedGpu], unit: str, lease: Lease | None) -> Lease | None:
        """Ends the daemon of a unit, which no longer does what it should, and starts it again; answers the new lease.

        Raises MpsFailed as `start` does.
        """
        async with self._locked():
            if lease is not None:
                lease.give_back()
            await self._stop_unit(unit)
            await self._start_unit(unit, gpus)
            return mps_lease.take(self.directory.pipes(unit), new=lease is not None)

    async def _check_user(self, unit: str) -> None:
        """Another user's server keeps this user's clients waiting, without a word, until its own have ended."""
        for server in await self.control(unit).servers():
            uid = user_of(server)
            if uid not in (None, os.geteuid()):
                raise MpsFailed(
                    f"the MPS server {server} of {unit} is user {uid}'s: MPS serves one user at a time, and clients of "
                    f"this one ({os.geteuid()}) would wait until it ends; end its clients first"
                )

    async def _exclude(self, units: Sequence[str]) -> None:
        """A single daemon and one per GPU exclude one another; what a crash has left of the other kind is cleared."""
        for other in await asyncio.to_thread(self.directory.units):
            if all(other == unit or ALL not in (other, unit) for unit in units):
                continue
            if await self.state(other) is not DaemonState.ABSENT:
                raise MpsFailed(
                    f"MPS has been started here for '{other}', which excludes a daemon for '{units[0]}'; end it: "
                    f"efserve mps stop --run-dir {self.directory.path}"
                )
            await self._stop_unit(other)

    async def _start_unit(self, unit: str, gpus: Sequence[ListedGpu]) -> Started:
        pipes = self.directory.pipes(unit)
        state = await self.state(unit)
        if state is DaemonState.RUNNING:
            return Started(unit, str(pipes), is_new=False)
        if state is DaemonState.HANGING:
            raise MpsHangs(
                f"the MPS daemon of {unit} does not answer within {self.programs.deadline_s:g} s; end it with: "
                f"efserve mps stop --run-dir {self.directory.path}"
            )
        if not await self._stop_unit(unit):  # what a crash has left
            raise MpsFailed(
                f"an MPS daemon of {unit} is there already, does not answer and cannot be ended; see {pipes}"
            )
        try:
            for gpu in gpus:
                await self._modes.make_exclusive(gpu)
            await self._launch(unit, gpus)
        except BaseException:  # Ctrl-C as well: nothing half started stays
            await self._stop_unit(unit)
            for gpu in gpus:
                await self._modes.restore(gpu.uuid)
            raise
        return Started(unit, str(pipes), is_new=True)

    async def _launch(self, unit: str, gpus: Sequence[ListedGpu]) -> None:
        pipes, logs = self.directory.pipes(unit), self.directory.logs(unit)
        try:
            pipes.mkdir(exist_ok=True)
            logs.mkdir(exist_ok=True)
        except OSError as exc:
            raise MpsFailed(f"cannot make a folder in {self.directory.path}: {exc.strerror}") from exc
        raise_file_limit()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_MPS_")}
        environment = {  # a client's share or limit here would be that of all clients
            **inherited,
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus),
            "CUDA_MPS_PIPE_DIRECTORY": str(pipes),
            "CUDA_MPS_LOG_DIRECTORY": str(logs),
        }
        said = logs / "start.log"
        command = [self.programs.control, "-d"]
        ended = await run_nvidia(command, self.programs.deadline_s, environment=environment, output=said)
        state = await self.state(unit) if ended.code == 0 else DaemonState.ABSENT
        if state is not DaemonState.RUNNING:
            words = " ".join(said.read_text(errors="replace").split())
            raise MpsFailed(f"the MPS daemon of {unit} did not start ({words or 'it said nothing'}); see {logs}")

    # Stop

    async def leave(self, unit: str, lease: Lease | None) -> bool:
        """Ends the use of a daemon, and the daemon if this was the last; False where something could not be undone."""
        if lease is None:
            return True
        async with self._locked():
            return not lease.give_back() or await self._undo(unit)

    async def stop(self, only: Collection[str] | None = None) -> tuple[tuple[str, ...], bool]:
        """Ends every daemon here, or `only` those of some GPUs, and restores compute modes, also what a crash has left.

        Answers the units that ended, and whether all is done.
        """
        if not await asyncio.to_thread(self.directory.path.is_dir):
            return (), True
        async with self._locked():
            units = [unit for unit in self.directory.units() if only is None or unit in only]
            ended = [unit for unit in units if await self._stop_unit(unit)]
            kept = [uuid for uuid in self.directory.kept_modes() if only is None or uuid in only]
            restored = [await self._modes.restore(uuid) for uuid in kept]
        return tuple(ended), len(ended) == len(units) and all(restored)

    async def _undo(self, unit: str) -> bool:
        ended = await self._stop_unit(unit)
        uuids = self.directory.kept_modes() if unit == ALL else (unit,)
        return all([await self._modes.restore(uuid) for uuid in uuids]) and ended

    async def _stop_unit(self, unit: str) -> bool:
        """Ends a daemon and its servers: politely, by SIGTERM, by SIGKILL; False where even that did not help."""
        with contextlib.suppress(MpsFailed):
            if await self.state(unit) is DaemonState.RUNNING:
                await self.control(unit).quit()
                await self._gone(unit, self.programs.deadline_s)
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = await asyncio.to_thread(self.directory.processes, unit)
            for pid in left:
                log.warning("the MPS process %d of %s does not quit; it gets %s", pid, unit, number.name)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if left:
                await self._gone(unit, min(_SIGNAL_S, self.programs.deadline_s))
        left = await asyncio.to_thread(self.directory.processes, unit)
        if left:
            log.warning("the MPS process %d of %s does not end (it is user %s's)", left[0], unit, user_of(left[0]))
            return False
        await asyncio.to_thread(self.directory.clear, unit)
        return True

    async def _gone(self, unit: str, deadline_s: float) -> None:
        """Waits for the unit's processes, which are nobody's children here, so that there is nothing to await."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while await asyncio.to_thread(self.directory.processes, unit):  # noqa: ASYNC110 - nobody tells of others' children
                    await asyncio.sleep(_GONE_POLL_S)

    # Status

    async def status(self, gpus: Sequence[ListedGpu]) -> tuple[MpsFacts, ...]:
        """What runs on each GPU."""
        return tuple([await self._facts(gpu) for gpu in gpus])

    async def _facts(self, gpu: ListedGpu) -> MpsFacts:
        unit = self.directory.unit_of(gpu.uuid)
        state = await self.state(unit)
        servers: tuple[ServerFacts, ...] = ()
        listed: tuple[ListedClient, ...] = ()
        if state is DaemonState.RUNNING:
            try:
                servers = await self.servers(unit)
                listed = await self.control(unit).listed() if servers else ()
            except MpsHangs:
                state = DaemonState.HANGING
            except MpsFailed as exc:
                log.warning("%s", exc)
        return MpsFacts(
            gpu.index,
            gpu.uuid,
            unit,
            state,
            gpu.compute_mode,
            self.directory.kept_mode(gpu.uuid),
            str(self.directory.pipes(unit)),
            self.directory.processes(unit),
            servers,
            listed,
        )

    async def servers(self, unit: str) -> tuple[ServerFacts, ...]:
        """The servers of a daemon with their clients."""
        control = self.control(unit)
        return tuple(
            [
                ServerFacts(pid, user_of(pid), await control.server_status(pid), await control.clients(pid))
                for pid in await control.servers()
            ]
        )

    def _locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self.directory.locked(max(60.0, 4 * self.programs.deadline_s))


def raise_file_limit() -> None:
    """A daemon, and its clients, need many files; what this process may not have is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinity = resource.RLIM_INFINITY
    if soft == infinity or soft >= _FILES:
        return
    wanted = _FILES if hard == infinity or hard >= _FILES else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _FILES:
        log.warning("at most %d open files here; with many clients MPS needs %d (ulimit -n)", wanted, _FILES)
