"""Where load runs: in this process, or spread over child processes that were started before.

A `Source` starts a load, hands its records on in chunks, and stops it. A child that dies is an error at once, never a
wait; children end when their standard input does, so that none outlives this process.
"""

import asyncio
import contextlib
import pickle
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from efserve.errors import MeasurementFailed
from efserve.loadtest.job import LoadJob, Loop, OpenJob, make_loop
from efserve.loadtest.recording import Chunk

START_DEADLINE_S = 60.0
HEAD_START_NS = 50_000_000  # until the begin, so that everything is ready for the first request
LENGTH = struct.Struct("<Q")


class Source(Protocol):
    """One load, from its start to its end."""

    processes: int  # that make it

    @property
    def deaths(self) -> "Sequence[asyncio.Future[object]]":
        """Done when a process has ended that should not have: the next call says so by MeasurementFailed."""

    async def start(self, job: LoadJob) -> int:
        """Start the load; its begin, in monotonic ns."""

    async def cut(self) -> list[Chunk]:
        """What was recorded since the last call, per process."""

    async def finish(self) -> None:
        """Wait until a load that has an end is over."""

    async def stop(self) -> None:
        """Send nothing more and wait for the answers under way, each until its deadline."""

    def close(self) -> None:
        """End the load at once."""


class LocalSource:
    """Load in this process."""

    processes = 1
    deaths: "Sequence[asyncio.Future[object]]" = ()

    def __init__(self) -> None:
        self._loop: Loop | None = None

    async def start(self, job: LoadJob) -> int:
        """See `Source`."""
        begin_ns = time.monotonic_ns() + (HEAD_START_NS if isinstance(job.work, OpenJob) else 0)
        self._loop = make_loop(job, begin_ns)
        self._loop.start()
        return begin_ns

    async def cut(self) -> list[Chunk]:
        """See `Source`."""
        return [self._running().cut()]

    async def finish(self) -> None:
        """See `Source`."""
        await self._running().finished.wait()

    async def stop(self) -> None:
        """See `Source`."""
        await self._running().stop()

    def close(self) -> None:
        """See `Source`."""
        if self._loop is not None:
            self._loop.close()

    def _running(self) -> Loop:
        assert self._loop is not None, "not started"
        return self._loop


class Child:
    """One process of load: orders go to its standard input, answers to each come back in any order."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self.death: asyncio.Future[object] = asyncio.ensure_future(self._read())
        self.dead = ""  # why, once it is

    def __repr__(self) -> str:
        return f"<Child {self.number} pid {self.process.pid}{' dead' if self.dead else ''}>"

    async def ask(self, order: str, value: object = None) -> Any:
        """Give an order and wait for its answer. Raises MeasurementFailed when the process ends instead."""
        answer = self._answers[order] = asyncio.get_running_loop().create_future()
        if self.dead:
            raise MeasurementFailed(self.dead)
        self._give(order, value)
        return await answer

    def tell(self, order: str) -> None:
        """Give an order that has no answer."""
        self._give(order, None)

    def _give(self, order: str, value: object) -> None:
        """Its pipe closes before its end is known: what it can no longer be given, the end will answer."""
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            data = pickle.dumps((order, value), pickle.HIGHEST_PROTOCOL)
            self.process.stdin.write(LENGTH.pack(len(data)) + data)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        reason = "closed its pipe"
        try:
            while True:
                (length,) = LENGTH.unpack(await self.process.stdout.readexactly(LENGTH.size))
                order, value = pickle.loads(await self.process.stdout.readexactly(length))  # our own child
                answer = self._answers.pop(order, None)
                if answer is not None and not answer.done():
                    answer.set_result(value)
        except (asyncio.IncompleteReadError, ConnectionError):
            reason = _ending(await self.process.wait())
        finally:
            self.dead = f"process {self.number} of the load generator {reason}; the level cannot be measured"
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(MeasurementFailed(self.dead))
                    answer.exception()  # it may be that nobody waits for this one

    async def end(self) -> None:
        """Kill and reap it."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        await asyncio.gather(self.death, return_exceptions=True)


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class CrewSource:
    """Load spread over child processes, each with its share; all begin at the same time."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = list(children)
        self._active: list[Child] = []
        self.processes = len(children)

    @property
    def deaths(self) -> "Sequence[asyncio.Future[object]]":
        """See `Source`."""
        return [child.death for child in self._active]

    async def start(self, job: LoadJob) -> int:
        """See `Source`."""
        jobs = job.split(len(self._children))
        self._active = self._children[: len(jobs)]
        self.processes = len(jobs)
        await asyncio.gather(*(child.ask("prepare", one) for child, one in zip(self._active, jobs, strict=True)))
        begin_ns = time.monotonic_ns() + HEAD_START_NS
        await self._all("start", begin_ns)
        return begin_ns

    async def cut(self) -> list[Chunk]:
        """See `Source`."""
        return await self._all("cut")

    async def finish(self) -> None:
        """See `Source`."""
        await self._all("finish")

    async def stop(self) -> None:
        """See `Source`."""
        await self._all("stop")

    def close(self) -> None:
        """See `Source`."""
        for child in self._active:
            child.tell("close")

    async def _all(self, order: str, value: object = None) -> list[Any]:
        return list(await asyncio.gather(*(child.ask(order, value) for child in self._active)))


@contextlib.asynccontextmanager
async def crew(count: int) -> AsyncIterator[list[Child]]:
    """So many processes of load, ready for orders, always ended. Raises MeasurementFailed when one does not start."""
    children: list[Child] = []
    try:
        for number in range(1, count + 1):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "efserve.loadtest.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
            children.append(Child(number, process))
        async with asyncio.timeout(START_DEADLINE_S):
            await asyncio.gather(*(child.ask("hello") for child in children))
        yield children
    except TimeoutError as exc:
        raise MeasurementFailed(f"{count} processes of load did not start within {START_DEADLINE_S:g} s") from exc
    finally:
        await asyncio.gather(*(child.end() for child in children))
