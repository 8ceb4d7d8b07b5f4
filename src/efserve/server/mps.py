"""MPS for a running server: daemons for GPUs that workers share, faults noticed and healed, all undone at the end.

A fault of one client reaches every client of its daemon, whose server takes no new one until all have gone. So on a
fault all workers of the daemon are killed; their versions start them again when the server is ACTIVE.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from efserve.errors import LoadFailed, MpsFailed, MpsHangs
from efserve.partition import Obtained, Partition
from efserve.partitions.compute_mode import ListedGpu, list_gpus
from efserve.partitions.mps import DaemonState, MpsDaemons
from efserve.partitions.mps_control import ServerStatus
from efserve.partitions.mps_directory import ALL
from efserve.partitions.mps_lease import Lease
from efserve.partitions.mps_log import FaultLog

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # between two looks at a daemon with workers
_HEAL_LOOK_S = 0.25  # and while it recovers
_HEAL_S = 30.0  # for a server to be ACTIVE again; then its daemon is restarted
_ENDED_S = 10.0  # for killed workers to have gone
_PART_S = 3.0  # for terminate_client, before a worker is killed


class GpuWorker(Protocol):
    """A worker process, as far as this is concerned with it."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def kill(self) -> None:
        """Ends it; its version notices and starts another."""


@dataclass(slots=True)
class Attachment:
    """A worker on a GPU, and whether it was killed because of a fault there, which may be another's."""

    worker: GpuWorker
    is_struck: bool = False


class _Unit:
    """A daemon that this server uses."""

    def __init__(self, lease: Lease | None, faults: FaultLog) -> None:
        self.lease = lease
        self.faults = faults
        self.workers: list[Attachment] = []
        self.is_well = asyncio.Event()
        self.is_well.set()
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self.hangs = False
        self.watch: asyncio.Task[None] | None = None


class MpsService:
    """`mode` is auto, on or off. One per server, in one event loop; `stop` undoes what it did."""

    def __init__(
        self, daemons: MpsDaemons, mode: str = "off", *, look_s: float = _LOOK_S, heal_s: float = _HEAL_S
    ) -> None:
        self._daemons = daemons
        self._mode = mode
        self._look_s = look_s
        self._heal_s = heal_s
        self._gpus: dict[str, ListedGpu] = {}  # of this machine, by uuid, once they were looked for
        self._units: dict[str, _Unit] = {}
        self._unit_of: dict[str, str] = {}  # by uuid
        self._refusals: dict[str, str] = {}  # why MPS could not be had, by uuid
        self._changing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<MpsService {self._mode} {self._unit_of}>"

    async def start(self, partitions: Iterable[Partition] = ()) -> None:
        """Has daemons run for the GPUs of these partitions: with `on` of all, with `auto` of those that are a part.

        To be called at the start, and again before workers of models that come later. With `on`, raises MpsFailed where
        MPS cannot be had, even if no partition is on a GPU; with `auto` the reason is logged, and `why_not` tells it.
        """
        if self._mode == "off":
            return
        async with self._changing:
            wanted = {one.device for one in partitions if one.is_gpu and (_is_limited(one) or self._mode == "on")}
            missing = sorted(wanted - self._unit_of.keys())
            if missing or (self._mode == "on" and not self._gpus):
                await self._use(missing)

    async def stop(self) -> None:
        """Ends the daemons that this server started and that no other uses, and restores compute modes. Never raises.

        The workers are to have ended before.
        """
        for unit in self._units.values():
            if unit.watch is not None:
                unit.watch.cancel()
                (end,) = await asyncio.gather(unit.watch, return_exceptions=True)
                if isinstance(end, Exception):
                    log.error("the watch over MPS had ended early", exc_info=end)
        async with self._changing:
            self._unit_of.clear()
            while self._units:
                name, unit = self._units.popitem()
                unit.is_well.set()
                try:
                    is_done = await self._daemons.leave(name, unit.lease)
                except MpsFailed as exc:
                    log.warning("%s", exc)
                    is_done = False
                if not is_done:
                    log.error("MPS of %s could not be undone; try: efserve mps stop", name)

    def pipe_directory(self, uuid: str) -> str:
        """CUDA_MPS_PIPE_DIRECTORY for workers on a GPU; empty where no daemon serves it."""
        name = self._unit_of.get(uuid)
        return str(self._daemons.directory.pipes(name)) if name else ""

    def why_not(self, uuid: str) -> str:
        """Why no daemon serves a GPU, for people; empty where one does."""
        if uuid in self._unit_of:
            return ""
        default = "--mps off" if self._mode == "off" else "nothing asked for it"
        return self._refusals.get(uuid, default)

    async def clients(self, uuid: str) -> tuple[int, ...]:
        """Process ids of the clients of a GPU's daemon; MpsFailed where it does not say, or there is none."""
        name = self._unit_of.get(uuid)
        if name is None:
            raise MpsFailed(f"no MPS daemon serves {uuid}: {self.why_not(uuid)}")
        by_server = await self._daemons.control(name).all_clients()
        return tuple(pid for pids in by_server.values() for pid in pids)

    async def confirm(self, partition: Partition, pid: int, obtained: Obtained) -> None:
        """Raise LoadFailed where a worker that was to be a client of a daemon is none: it runs without its share.

        Fewer SMs than the device has, which the worker has compared with its share, prove it as well; a daemon in
        another container knows the worker by another process id.
        """
        if partition.means != "mps":
            return
        try:
            missing = pid not in await self.clients(partition.device)
            why = f"the MPS daemon of {partition.device} does not list it (process {pid}) among its clients"
        except MpsFailed as exc:
            missing, why = True, str(exc)
        if not missing:
            return
        if 0 < obtained.sm_count < partition.units:
            log.warning("%s, but it sees %d of %d SMs", why, obtained.sm_count, partition.units)
            return
        raise LoadFailed(f"its share was not applied: {why}; see `efserve doctor`")

    # Workers

    async def well(self, uuid: str) -> None:
        """Waits while the daemon of a GPU recovers from a fault, which has its deadlines; at once for anything else."""
        unit = self._unit(uuid)
        if unit is not None:
            await unit.is_well.wait()

    @contextlib.contextmanager
    def attached(self, uuid: str, worker: GpuWorker) -> Iterator[Attachment]:
        """Within the block, from before its start to after its end, a worker is killed when its daemon has a fault."""
        attachment = Attachment(worker)
        unit = self._unit(uuid)
        if unit is None:
            yield attachment
            return
        unit.workers.append(attachment)
        unit.is_empty.clear()
        try:
            yield attachment
        finally:
            unit.workers.remove(attachment)
            if not unit.workers:
                unit.is_empty.set()

    def before_kill(self, uuid: str) -> Callable[[int], Awaitable[None]] | None:
        """What is to be awaited with a worker's process id before it is killed; it has a deadline and never raises."""
        name = self._unit_of.get(uuid)
        return partial(self._part, name) if name else None

    def _unit(self, uuid: str) -> _Unit | None:
        return self._units.get(self._unit_of.get(uuid, ""))

    async def _part(self, name: str, pid: int) -> None:
        unit = self._units.get(name)
        if unit is None or not unit.is_well.is_set():  # after a fault the server waits for just this end
            return
        control = self._daemons.control(name)
        try:
            async with asyncio.timeout(_PART_S):
                for server, clients in (await control.all_clients()).items():
                    if pid in clients:
                        await control.terminate_client(server, pid)
        except (MpsFailed, TimeoutError) as exc:
            log.warning("the MPS daemon of %s could not part from worker %d: %s", name, pid, exc or "deadline")

    # Daemons

    async def _use(self, uuids: list[str]) -> None:
        try:
            self._daemons.programs.found()
            if not self._gpus:
                self._gpus = {gpu.uuid: gpu for gpu in await list_gpus(self._daemons.programs)}
        except MpsFailed as exc:
            self._refuse(exc, *uuids)
            return
        for uuid in uuids:
            try:
                await self._use_one(uuid)
            except MpsFailed as exc:
                self._refuse(exc, uuid)

    async def _use_one(self, uuid: str) -> None:
        gpu = self._gpus.get(uuid)
        if gpu is None or gpu.is_mig:
            raise MpsFailed(
                f"{uuid} is a MIG slice or in MIG mode, or is no GPU of this machine; MPS is left off there"
            )
        name, lease = await self._daemons.use(gpu)
        self._unit_of[uuid] = name
        if name in self._units:  # a single daemon, which serves another GPU already
            if lease is not None:
                lease.give_back()
            return
        unit = _Unit(lease, FaultLog(self._daemons.directory.logs(name)))
        unit.faults.new_fault()  # what is in the log already has been before
        self._units[name] = unit
        unit.watch = asyncio.create_task(self._look_for_ever(name, unit))

    def _refuse(self, reason: MpsFailed, *uuids: str) -> None:
        if self._mode == "on":
            raise reason
        log.warning("no MPS: %s", reason)
        self._refusals.update(dict.fromkeys(uuids, str(reason)))

    async def _look_for_ever(self, name: str, unit: _Unit) -> None:
        while name in self._units:
            fault = await asyncio.to_thread(unit.faults.new_fault)
            if unit.workers:
                await self._look(name, unit, fault)
            await asyncio.sleep(self._look_s)

    async def _look(self, name: str, unit: _Unit, logged: str) -> None:
        try:
            statuses = await self._statuses(name)
        except MpsHangs as exc:
            if not unit.hangs:
                log.warning("%s; its workers go on", exc)
            unit.hangs = True
            return
        except MpsFailed as exc:  # one of its servers may just have ended
            if await self._daemons.state(name) is DaemonState.ABSENT:
                await self._heal(name, unit, str(exc), daemon_is_gone=True)
            return
        unit.hangs = False
        if ServerStatus.FAULT in statuses or logged:
            await self._heal(name, unit, logged or "its server is in state FAULT", daemon_is_gone=False)

    async def _statuses(self, name: str) -> list[ServerStatus]:
        control = self._daemons.control(name)
        return [await control.server_status(server) for server in await control.servers()]

    async def _heal(self, name: str, unit: _Unit, why: str, *, daemon_is_gone: bool) -> None:
        """Ends the workers of a daemon, and has it well again, by itself or by a restart."""
        log.error("MPS of %s has failed (%s); its %d workers start again", name, why, len(unit.workers))
        unit.is_well.clear()
        try:
            for attachment in list(unit.workers):
                attachment.is_struck = True
                attachment.worker.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDED_S):
                    await unit.is_empty.wait()
            if daemon_is_gone or not await self._recovers(name):
                gpus = [gpu for gpu in self._gpus.values() if not gpu.is_mig and name in (ALL, gpu.uuid)]
                unit.lease = await self._daemons.restart(gpus, name, unit.lease)
            await asyncio.to_thread(unit.faults.new_fault)  # what was logged meanwhile is dealt with
            log.warning("MPS of %s is well again", name)
        except MpsFailed as exc:
            log.error("MPS of %s is lost: %s", name, exc)
            self._units.pop(name, None)
            for uuid in [uuid for uuid, unit_name in self._unit_of.items() if unit_name == name]:
                del self._unit_of[uuid]
                self._refusals[uuid] = str(exc)
        finally:
            unit.is_well.set()

    async def _recovers(self, name: str) -> bool:
        """Waits until every server is ACTIVE, or none is left; False where that takes too long."""
        try:
            async with asyncio.timeout(self._heal_s):
                while any(status is not ServerStatus.ACTIVE for status in await self._statuses(name)):  # noqa: ASYNC110 - it has to be asked
                    await asyncio.sleep(_HEAL_LOOK_S)
        except (TimeoutError, MpsFailed):
            return False
        return True


def _is_limited(partition: Partition) -> bool:
    """Whether only a part of the GPU is wanted, of its SMs or of its memory."""
    return bool(partition.share_pct or partition.memory_limit_bytes)
