"""The gateway's handle on one worker: start, batches out and answers in, death, stop.

Owns the worker's process, control connection and shared memory. Which batch goes to which slot is the router's
business, and so are the requests of a batch that a dead worker never answered.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from enum import Enum
from time import monotonic

from efserve.errors import InferenceFailed, LoadFailed
from efserve.inference import BatchTiming, InferRequest, Outcome
from efserve.partitions import entry
from efserve.reasons import with_output
from efserve.transport import messages
from efserve.transport.arena import Area
from efserve.transport.channel import Channel
from efserve.worker.exchange import Exchange
from efserve.worker.precedence import give_way
from efserve.worker.process import ChildProcess
from efserve.worker.spec import WorkerFacts, WorkerSpec

__all__ = ["Worker", "WorkerFacts", "WorkerSpec", "WorkerState"]

log = logging.getLogger(__name__)

_TERM_S = 2.0  # from SIGTERM to SIGKILL
_KILL_S = 10.0  # from SIGKILL to its end, which gives all its memory back
_LEAVE_S = 2.0  # for a worker that has hung up or failed to load, to end by itself


class WorkerState(Enum):
    """Where a worker is in its life."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DEAD = "dead"


_MOVES = {
    WorkerState.NEW: (WorkerState.STARTING, WorkerState.DEAD),
    WorkerState.STARTING: (WorkerState.READY, WorkerState.STOPPING, WorkerState.DEAD),
    WorkerState.READY: (WorkerState.STOPPING, WorkerState.DEAD),
    WorkerState.STOPPING: (WorkerState.DEAD,),
    WorkerState.DEAD: (),
}


class Worker:
    """One worker process, to be used from the event loop that started it; it dies with this process.

    `on_done(worker, slot, outcomes, timing)` answers each `send`, in the order of its requests; the slot is free again.
    `on_death(worker, reason)` comes once if a READY worker ends without `stop`; what it had not answered then, and what
    it has not answered when `stop` returns, is never answered. `before_kill(pid)` is awaited before a signal that ends
    it; that has a deadline of its own and never raises.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        on_done: Callable[["Worker", int, list[Outcome], BatchTiming | None], None],
        on_death: Callable[["Worker", str], None],
        before_kill: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self.state = WorkerState.NEW
        self.facts: WorkerFacts | None = None
        self._name = f"{spec.config.name}/{spec.version}"
        self._on_done = on_done
        self._on_death = on_death
        self._before_kill = before_kill
        self._killing: asyncio.Task[None] | None = None
        self._running: list[Sequence[InferRequest]] = [()] * spec.slots
        self._settled = asyncio.Event()  # READY, or never to be
        self._failure = ""  # why it could not start, where it said so
        self._cause = ""  # why we killed it
        self._is_left_behind = False  # not even SIGKILL has ended it in time
        self._limit: asyncio.Timeout | None = None  # of the start
        self._deadline_s = 0.0
        self._progress = ""  # what it last told of its load
        self._process: ChildProcess | None = None
        self._owned: list[Channel | Area] = []  # until the process has ended

    def __repr__(self) -> str:
        return f"<Worker {self._name} {self.spec.engine} {self.state.value} pid={self.pid}>"

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def stderr_tail(self) -> str:
        """The last lines that the process printed."""
        return self._process.stderr_tail if self._process else ""

    @property
    def ending(self) -> str:
        """How the process ended: "killed by SIGKILL", "exited with code 3"; empty before."""
        return self._process.ending if self._process else ""

    def rss_bytes(self) -> int:
        """Resident memory of the process; 0 when there is none."""
        return self._process.rss_bytes() if self._process else 0

    async def start(self, deadline_s: float, *, gives_way: bool = False) -> WorkerFacts:
        """Start the process and wait until it is READY; one that `gives_way` loads while the processors are free.

        Raises LoadFailed, with what is known of the reason, when it says that it cannot, ends, or is neither ready
        nor tells of progress for `deadline_s`; the process is gone by then, or as in `stop`.
        """
        self._move(WorkerState.STARTING)
        self._loop = asyncio.get_running_loop()
        process = await self._spawn()
        try:
            async with asyncio.timeout(deadline_s) as self._limit:
                self._deadline_s = deadline_s
                if gives_way:
                    await give_way(process.pid, self._settled, deadline_s / 2)
                await self._settled.wait()
        except TimeoutError:
            self._failure = self._failure or self._too_late(deadline_s)
        finally:
            if self.state is WorkerState.STARTING:
                await self._end_at_once(process, _KILL_S)
        if self.facts is None:
            raise LoadFailed(self._failure)
        return self.facts

    def send(self, slot: int, requests: Sequence[InferRequest]) -> None:
        """Give the worker, which must be READY, one batch in a free slot. Never blocks; `on_done` comes later."""
        self._running[slot] = requests
        try:
            message = self._exchange.write(slot, requests)
        except OSError as error:
            failures: list[Outcome] = [InferenceFailed(f"no shared memory for the batch: {error}")] * len(requests)
            self._loop.call_soon(self._finish, slot, failures, None)
            return
        try:
            self._channel.send(message)
        except BlockingIOError:
            self._cause = "read none of its batches and was "
            self.kill()
        except OSError:  # it has just died, which the loop is about to notice
            pass

    async def stop(self, drain_s: float, *, kill_s: float = _KILL_S) -> None:
        """End the process: let it answer what it has within `drain_s`, then SIGTERM, then SIGKILL. May be repeated.

        A process that the kernel does not end within `kill_s` is left behind, with a line in the log; what it holds is
        let go when it ends.
        """
        if self.state is WorkerState.NEW:
            self._move(WorkerState.DEAD)
        if self.state is WorkerState.STARTING and self._process is None:
            self._move(WorkerState.STOPPING)
        if self._process is None and self.state is WorkerState.STOPPING:  # there in a moment, and killed then
            await self._settled.wait()
        if self.state is WorkerState.DEAD or self._process is None or self._is_left_behind:
            return
        if self.state is WorkerState.READY:
            self._move(WorkerState.STOPPING)
            with contextlib.suppress(OSError):
                self._channel.send(messages.stop())
        elif self.state is WorkerState.STARTING:
            self._move(WorkerState.STOPPING)
            drain_s = 0.0  # nothing to drain
        for number, deadline_s in ((None, drain_s), (signal.SIGTERM, _TERM_S)):
            if number:
                await self._end(self._process, number)
            if await self._process.wait(deadline_s):
                return
        await self._end_at_once(self._process, kill_s)

    def kill(self) -> None:
        """SIGKILL now, or when `before_kill` is done; a READY worker's death is reported like any other."""
        if self._process is None:
            return
        if self._before_kill is None:
            self._process.signal(signal.SIGKILL)
        elif self._killing is None:
            self._killing = self._loop.create_task(self._end(self._process, signal.SIGKILL))

    async def _end_at_once(self, process: ChildProcess, kill_s: float) -> None:
        self.kill()
        self._is_left_behind = not await process.wait(kill_s)
        if self._is_left_behind:
            log.error(
                "model=%s worker process %d has not ended within %g s of SIGKILL and is left behind; the kernel ends "
                "it when what it waits for, such as a disk or a driver, answers",
                self._name,
                process.pid,
                kill_s,
            )

    async def _end(self, process: ChildProcess, number: signal.Signals) -> None:
        try:
            if self._before_kill is not None and not process.ending:
                await self._before_kill(process.pid)
        finally:  # also where the loop is about to end
            process.signal(number)

    def _move(self, state: WorkerState) -> None:
        if state not in _MOVES[self.state]:
            raise RuntimeError(f"{self!r} cannot become {state.value}")
        self.state = state

    async def _spawn(self) -> ChildProcess:
        self._start_s = monotonic()
        try:
            self._channel, theirs = Channel.pair()
            self._owned.append(self._channel)
            with closing(theirs), closing(Area.create()) as request:
                request.put(messages.to_json(self.spec))
                self._inputs = [self._area() for _ in range(self.spec.slots)]
                self._outputs = [self._area() for _ in range(self.spec.slots)]
                pairs = zip(self._inputs, self._outputs, strict=True)
                fds = [theirs.fileno(), request.fileno(), *[area.fileno() for pair in pairs for area in pair]]
                self._process = await ChildProcess.start(
                    ["efserve.worker", self._name, str(os.getpid()), *map(str, fds)],
                    fds=fds,
                    environment=entry.environment(self.spec.partition, spin=self.spec.spin),
                    on_exit=self._exited,
                )
        except OSError as error:
            raise LoadFailed(f"cannot start a worker process: {error}") from error
        finally:
            if self._process is None:
                self._let_go()
                self._move(WorkerState.DEAD)
                self._settled.set()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        if self.state is WorkerState.STOPPING:
            self.kill()
        return self._process

    def _area(self) -> Area:
        area = Area.create()
        self._owned.append(area)
        return area

    def _receive(self) -> None:
        message = self._channel.receive()
        if message:
            self._handle(message)
        elif message is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._leave_soon()

    def _handle(self, message: bytes) -> None:
        match message[0]:
            case messages.DONE:
                slot = message[1]
                outcomes = self._exchange.outcomes(slot, self._running[slot], message)
                self._finish(slot, outcomes, BatchTiming._make(messages.DONE_HEAD.unpack_from(message)[2:]))
            case messages.ERROR:
                slot = message[1]
                failure = InferenceFailed(messages.text_of(message))
                self._finish(slot, [failure] * len(self._running[slot]), None)
            case messages.READY:
                self._become_ready(message)
            case messages.PROGRESS:
                self._note_progress(messages.text_of(message))
            case messages.FAILED:
                self._failure = messages.text_of(message)
                self._leave_soon()

    def _finish(self, slot: int, outcomes: list[Outcome], timing: BatchTiming | None) -> None:
        self._running[slot] = ()
        self._on_done(self, slot, outcomes, timing)

    def _become_ready(self, message: bytes) -> None:
        if self.state is not WorkerState.STARTING:
            return
        told = messages.from_json(self._outputs[0].get(messages.ready_bytes(message)), WorkerFacts)
        self.facts = replace(told, start_s=monotonic() - self._start_s)
        self._exchange = Exchange(told.config, self._inputs, self._outputs)
        self._move(WorkerState.READY)
        self._settled.set()

    def _note_progress(self, text: str) -> None:
        self._progress = text
        if self.state is WorkerState.STARTING and self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._loop.time() + self._deadline_s)
            log.warning("model=%s %s", self._name, text)  # a load of minutes is worth a line to everybody

    def _too_late(self, deadline_s: float) -> str:
        if self._progress:
            return f"it told nothing new within {deadline_s:g} s; the last: {self._progress}"
        return f"it was not ready within {deadline_s:g} s"

    def _leave_soon(self) -> None:
        """See to it that a process which has nothing more to say ends."""
        self._loop.call_later(_LEAVE_S, self._leave)

    def _leave(self) -> None:
        if self.state is not WorkerState.DEAD:
            self._cause = "closed its connection and was "
            self.kill()

    def _exited(self) -> None:
        was = self.state
        while message := self._channel.receive():  # batches that it answered before it died, or why it cannot load
            if message[0] != messages.READY:
                self._handle(message)
        self._let_go()
        self._move(WorkerState.DEAD)
        if not self._settled.is_set():
            self._failure = self._why_not_started(was)
            self._settled.set()
        elif was is WorkerState.READY:
            self._on_death(self, with_output(self._cause + self.ending, self.stderr_tail))

    def _why_not_started(self, was: WorkerState) -> str:
        if was is WorkerState.STOPPING:
            return "it was stopped while it was starting"
        reason = self._failure or f"its worker {self._cause}{self.ending} while it was starting"
        return with_output(reason, self.stderr_tail)

    def _let_go(self) -> None:
        if self._owned:
            self._loop.remove_reader(self._channel.fileno())
        for resource in self._owned:
            resource.close()
        self._owned.clear()
