"""One child process: how it starts, what it says on stderr, how it ends.

Its death is seen through a pidfd, which the kernel makes readable at once, whoever else holds the child's pipes.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from efserve.worker.spawning import spawn

_TAIL_BYTES = 8192
_TAIL_LINES = 50
_READ_BYTES = 65536
_TAIL_READS = 16
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ChildProcess:
    """A running `python -m MODULE`; calls `on_exit` exactly once, when it has ended and been reaped.

    Everything that it prints is read, always, so that a chatty model never blocks; the last lines are kept.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pid: int, stderr: int, on_exit: Callable[[], None]) -> None:
        """`pid` is a child of this process that leads a session; the descriptor `stderr` belongs to this from here on.

        Where that fails, the process is killed and OSError raised.
        """
        self.exited = asyncio.Event()
        self.pid = pid
        self._loop = loop
        self._on_exit = on_exit
        self._tail = b""
        self._stderr = stderr
        self._code: int | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            _end(pid)
            os.close(stderr)
            raise
        loop.add_reader(self._stderr, self._drain)
        loop.add_reader(self._pidfd, self._reap)

    @classmethod
    async def start(
        cls, arguments: Sequence[str], *, fds: Sequence[int], environment: dict[str, str], on_exit: Callable[[], None]
    ) -> "ChildProcess":
        """Start `python -m` with these arguments; OSError where that cannot be. What is cancelled starts none."""
        # -P: what lies in the current folder shadows no library
        command = [sys.executable, "-P", "-m", *arguments]
        stderr, child_stderr = os.pipe()
        with contextlib.ExitStack() as lent, contextlib.ExitStack() as kept:
            kept.callback(os.close, stderr)
            lent.callback(os.close, child_stderr)
            os.set_blocking(stderr, False)
            nothing = os.open(os.devnull, os.O_RDWR)
            lent.callback(os.close, nothing)
            standard = (nothing, child_stderr, child_stderr)
            spawned = asyncio.wrap_future(spawn(command, environment=environment, standard=standard, fds=fds))
            try:
                pid = await asyncio.shield(spawned)
            except asyncio.CancelledError:  # it is under way, and there in a moment
                await asyncio.wait((spawned,))
                if spawned.exception() is None:
                    _end(spawned.result())
                raise
            kept.pop_all()
        return cls(asyncio.get_running_loop(), pid, stderr, on_exit)

    def __repr__(self) -> str:
        return f"<ChildProcess {self.pid} {self.ending or 'running'}>"

    @property
    def ending(self) -> str:
        """How it ended: "killed by SIGKILL", "exited with code 3"; empty while it runs."""
        code = self._code
        if code is None:
            return ""
        if code >= 0:
            return f"exited with code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:  # real-time signals have no name
            return f"killed by signal {-code}"

    @property
    def stderr_tail(self) -> str:
        """The last lines that it printed, to stderr or stdout."""
        lines = self._tail.decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def rss_bytes(self) -> int:
        """Resident memory; 0 when it has ended."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(pages[1]) * _PAGE_BYTES if pages else 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if not self.ending:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self, deadline_s: float) -> bool:
        """Wait for its end; False when the deadline came first."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def _drain(self) -> bool:
        try:
            data = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._stderr)
            return False
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started; safe, for its id is not free before it is reaped
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for fd in (self._pidfd, self._stderr):
            self._loop.remove_reader(fd)
        for _ in range(_TAIL_READS):  # what it said last; who else holds the pipe may never close it
            if not self._drain():
                break
        os.close(self._pidfd)
        os.close(self._stderr)
        self.exited.set()
        self._on_exit()


def _end(pid: int) -> None:
    """Of a child that has only just started."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
