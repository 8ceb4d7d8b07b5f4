"""One child process: how it starts, what it says on stderr, how it ends.

Its death is seen through a pidfd, which the kernel makes readable at once, whoever else holds the child's pipes.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_TAIL_BYTES = 8192
_TAIL_LINES = 50
_READ_BYTES = 65536
_TAIL_READS = 16
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ChildProcess:
    """A running `python -m MODULE`; calls `on_exit` exactly once, when it has ended and been reaped.

    Everything that it prints is read, always, so that a chatty model never blocks; the last lines are kept.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arguments: Sequence[str],
        *,
        fds: Sequence[int],
        environment: dict[str, str],
        on_exit: Callable[[], None],
    ) -> None:
        self.exited = asyncio.Event()
        self._loop = loop
        self._on_exit = on_exit
        self._tail = b""
        self._stderr, child_stderr = os.pipe()
        os.set_blocking(self._stderr, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],  # -P: what lies in the current folder shadows no library
                pass_fds=fds,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=child_stderr,
                stderr=child_stderr,
                start_new_session=True,  # Ctrl-C on the terminal does not reach it
            )
        except OSError:
            os.close(self._stderr)
            raise
        finally:
            os.close(child_stderr)
        self.pid = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            os.close(self._stderr)
            raise
        loop.add_reader(self._stderr, self._drain)
        loop.add_reader(self._pidfd, self._reap)

    def __repr__(self) -> str:
        return f"<ChildProcess {self.pid} {self.ending or 'running'}>"

    @property
    def ending(self) -> str:
        """How it ended: "killed by SIGKILL", "exited with code 3"; empty while it runs."""
        code = self._process.returncode
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
        self._process.wait()
        for fd in (self._pidfd, self._stderr):
            self._loop.remove_reader(fd)
        for _ in range(_TAIL_READS):  # what it said last; who else holds the pipe may never close it
            if not self._drain():
                break
        os.close(self._pidfd)
        os.close(self._stderr)
        self.exited.set()
        self._on_exit()
