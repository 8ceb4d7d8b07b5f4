"""The run directory of MPS daemons: their pipes, logs and processes, kept compute modes; the layout of start_MPS.sh.

A daemon belongs to a unit: the uuid of its GPU, or "all" for one daemon over all GPUs.

    mps-UNIT    pipe directory; in it `efserve-lease`, where a server started the daemon (see `mps_lease.py`)
    log-UNIT    control.log, server.log, and start.log, what the daemon said when it was started
    mode-UUID   the compute mode that the GPU had before
    lock        held by whoever starts or stops
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from efserve.errors import MpsFailed

ALL = "all"
_PID_FILE = "nvidia-cuda-mps-control.pid"
_PROCESS_NAME = "nvidia-cuda-mps"  # of daemon and server; the kernel cuts names at 15 characters
_SOCKET_BYTES = 107  # a longer path cannot be bound to
_LOCK_POLL_S = 0.05


class RunDirectory:
    """Files and processes below one folder. Looks and notes; starts and ends nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __repr__(self) -> str:
        return f"<RunDirectory {self.path} units={self.units()}>"

    def make(self, units: tuple[str, ...]) -> None:
        """Makes the folder, for this user alone; MpsFailed where it cannot be, or cannot serve these units."""
        for unit in units:
            length = len(os.fsencode(self.pipes(unit) / "control"))
            if length > _SOCKET_BYTES:
                raise MpsFailed(
                    f"the run directory {self.path} is too long: the daemon's socket would have a path of {length} "
                    f"bytes, at most {_SOCKET_BYTES} can be; name a shorter one with --run-dir"
                )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.path.stat().st_uid
        except OSError as exc:
            raise MpsFailed(
                f"cannot make the run directory {self.path}: {exc.strerror}; name another with --run-dir"
            ) from exc
        if owner != os.geteuid():
            raise MpsFailed(
                f"the run directory {self.path} belongs to user {owner}, not to you ({os.geteuid()}): MPS serves one "
                "user; name another with --run-dir"
            )

    def units(self) -> tuple[str, ...]:
        """Units that a start has left something of."""
        return tuple(sorted(path.name.removeprefix("mps-") for path in self.path.glob("mps-*") if path.is_dir()))

    def unit_of(self, uuid: str) -> str:
        """The unit that serves a GPU: the single daemon where there is one."""
        return ALL if self.pipes(ALL).is_dir() else uuid

    def pipes(self, unit: str) -> Path:
        """CUDA_MPS_PIPE_DIRECTORY of a unit."""
        return self.path / f"mps-{unit}"

    def logs(self, unit: str) -> Path:
        """CUDA_MPS_LOG_DIRECTORY of a unit."""
        return self.path / f"log-{unit}"

    def clear(self, unit: str) -> None:
        """Removes the pipe directory of a unit whose daemon has gone."""
        shutil.rmtree(self.pipes(unit), ignore_errors=True)

    # Compute modes

    def keep_mode(self, uuid: str, mode: str) -> None:
        """Notes a mode to be restored, unless one is noted already: an earlier start that nobody undid."""
        place = self.path / f"mode-{uuid}"
        if place.exists():
            return
        beside = self.path / f".mode-{uuid}"
        try:
            beside.write_text(f"{mode}\n")
            beside.replace(place)  # whoever finds the file finds all of it
        except OSError as exc:
            raise MpsFailed(f"cannot write {place}: {exc.strerror}") from exc

    def kept_mode(self, uuid: str) -> str:
        """The mode to be restored; empty where there is none."""
        try:
            return (self.path / f"mode-{uuid}").read_text().strip() or "?"
        except FileNotFoundError:
            return ""

    def kept_modes(self) -> tuple[str, ...]:
        """Uuids of GPUs whose mode is to be restored."""
        return tuple(sorted(path.name.removeprefix("mode-") for path in self.path.glob("mode-*")))

    def forget_mode(self, uuid: str) -> None:
        """The mode has been restored."""
        (self.path / f"mode-{uuid}").unlink(missing_ok=True)

    # Processes

    def processes(self, unit: str) -> tuple[int, ...]:
        """Live processes of the unit: the daemon, which comes first, and its servers, which inherit its environment.

        They are found by their environment, for a pid file may be missing, or stale: its number may have gone to
        another process since, or to the daemon of somebody else. Where the environment cannot be read (another user's
        process) the pid file is believed if it names an MPS process.
        """
        written = self._written_pid(unit)
        found = [pid for pid in _mps_processes() if self._is_of(unit, pid, written)]
        return tuple(sorted(found, key=lambda pid: (pid != written, pid)))

    def _written_pid(self, unit: str) -> int:
        try:
            text = (self.pipes(unit) / _PID_FILE).read_text().strip()
        except OSError:
            return 0
        return int(text) if text.isdecimal() else 0

    def _is_of(self, unit: str, pid: int, written: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            return pid == written
        except OSError:
            return False
        prefix = b"CUDA_MPS_PIPE_DIRECTORY="
        named = [item.removeprefix(prefix) for item in environment.split(b"\0") if item.startswith(prefix)]
        return bool(named) and os.path.realpath(named[0]) == os.fsencode(os.path.realpath(self.pipes(unit)))

    # One at a time

    @asynccontextmanager
    async def locked(self, deadline_s: float) -> AsyncIterator[None]:
        """Keeps other efserve processes from starting or stopping here meanwhile; the folder must be there."""
        with _opened(self.path / "lock") as file:
            try:
                async with asyncio.timeout(deadline_s):
                    while not _try_lock(file.fileno()):  # noqa: ASYNC110 - the kernel tells only who blocks
                        await asyncio.sleep(_LOCK_POLL_S)
            except TimeoutError as exc:
                raise MpsFailed(
                    f"another efserve has been starting or stopping MPS in {self.path} for more than {deadline_s:g} s; "
                    "try again when it has ended"
                ) from exc
            yield


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError as exc:
        raise MpsFailed(f"cannot write {path}: {exc.strerror}") from exc


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mps_processes() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text()
        except OSError:
            continue
        name, state = status.splitlines()[0].partition("\t")[2], status.partition("\nState:\t")[2][:1]
        if name.startswith(_PROCESS_NAME) and state not in "ZX":
            found.append(int(path.name))
    return found


def user_of(pid: int) -> int | None:
    """The user that a process runs as; None where it has gone."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
