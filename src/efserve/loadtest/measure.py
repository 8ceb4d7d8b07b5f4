"""One level: load, windows, the decision that it is stable, and the record of it all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from efserve.loadtest.crew import Source
from efserve.loadtest.job import ClientsJob, ClosedJob, LoadJob, OpenJob, Work
from efserve.loadtest.overload import Flow, overload
from efserve.loadtest.tally import Mark, Tally
from efserve.records import LevelRecord, Load, Pool, Samples, ServerCounters, Window
from efserve.stats import STABLE_WINDOWS, Verdict, WindowFigures, verdict, window_figures

OnWindow = Callable[[int, WindowFigures], None]  # number of the window from 1, its figures
OnProgress = Callable[[int, int], None]  # clients or requests that have ended, and how many there are
PROGRESS_S = 0.2
_Before = tuple[ServerCounters | None, ...]


class LevelSampler(Protocol):
    """Reads gauges of server and client while one level runs, in tasks of its own."""

    def start(self, begin_ns: int) -> None:
        """The first window begins, at this monotonic time."""

    async def stop(self) -> Samples | None:
        """The level is over; called once after each `start`, also when the level failed."""


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """How to measure one level. `counters` reads the server's statistics per model, None where there are none."""

    source: Source
    job: LoadJob
    to_the_end: bool  # of the load, however long that takes; else in windows until stable
    counters: tuple[Callable[[], Awaitable[ServerCounters | None]], ...]  # per model
    sampler: LevelSampler | None
    warmup_s: float
    window_s: float
    duration_s: float
    percentile: int | None
    on_progress: OnProgress | None  # called every 0.2 s of a load that has an end


async def measure_level(plan: LevelPlan, asked: Load, stop: asyncio.Event, on_window: OnWindow) -> LevelRecord | None:
    """Measure until the level is stable, or over, or `stop` is set; None if that was in the warm-up.

    `on_window` is called while load runs: it should take well under a millisecond.
    """
    level = _Level(plan, stop, on_window)
    samples = None
    try:
        before = await (level.warm_apart() if plan.to_the_end else level.warm_up())
        if stop.is_set():
            return None
        if plan.sampler is not None:
            plan.sampler.start(time.monotonic_ns())
        try:
            ruling = await (level.to_the_end() if plan.to_the_end else level.until_stable())
        finally:
            if plan.sampler is not None:
                samples = await plan.sampler.stop()
        after = await level.counters()
        await plan.source.stop()
    finally:
        plan.source.close()
    return level.record(asked, ruling, tuple(map(_difference, before, after)), samples)


class _Level:
    """A level under way."""

    def __init__(self, plan: LevelPlan, stop: asyncio.Event, on_window: OnWindow) -> None:
        self._plan = plan
        self._stop = stop
        self._on_window = on_window
        self._open = isinstance(plan.job.work, OpenJob)
        self._tally = Tally(plan.job.work.schedule if isinstance(plan.job.work, OpenJob) else None)
        self._figures: list[WindowFigures] = []
        self._flows: list[Flow] = []

    async def counters(self) -> _Before:
        """The server's statistics now."""
        return tuple(await asyncio.gather(*(read() for read in self._plan.counters)))

    async def warm_up(self) -> _Before:
        """Start the load and let it run for the warm-up."""
        begin_ns = await self._plan.source.start(self._plan.job)
        self._tally.begin(begin_ns)
        await self._pause_until(begin_ns + int(self._plan.warmup_s * 1e9))
        return await self.counters()

    async def warm_apart(self) -> _Before:
        """Warm up with another load, because each request of this one counts; then start this one."""
        source, job = self._plan.source, self._plan.job
        if self._plan.warmup_s:
            begin_ns = await source.start(replace(job, work=ClosedJob(_warm_concurrency(job.work))))
            await self._pause_until(begin_ns + int(self._plan.warmup_s * 1e9))
            await source.stop()
        before = await self.counters()
        if not self._stop.is_set():
            self._tally.begin(await source.start(job))
        return before

    async def until_stable(self) -> Verdict:
        """Windows, until the last three are alike or the duration is over."""
        plan = self._plan
        begin_ns = time.monotonic_ns()
        await self._cut(begin_ns)
        for number in range(1, int(plan.duration_s / plan.window_s + 1e-6) + 1):
            await self._pause_until(begin_ns + int(number * plan.window_s * 1e9))
            await self._cut(time.monotonic_ns())
            if self._stop.is_set():
                return Verdict(False, "interrupted")
            self._on_window(number, self._figures[-1])
            ruling = self._verdict()
            if ruling.stable:
                break
        return ruling

    async def to_the_end(self) -> Verdict:
        """All of the load, watched window by window."""
        begin_ns = self._tally.begin_ns
        await self._cut(begin_ns)
        finish: asyncio.Future[object] = asyncio.ensure_future(self._plan.source.finish())
        try:
            while not finish.done() and not self._stop.is_set():
                number = len(self._figures) + 1
                await self._pass_window(begin_ns + int(number * self._plan.window_s * 1e9), finish)
                await self._cut(time.monotonic_ns())
                self._on_window(number, self._figures[-1])
            if finish.done():
                finish.result()
        finally:
            finish.cancel()
            await asyncio.gather(finish, return_exceptions=True)
        if self._stop.is_set() and not self._tally.finished:
            return Verdict(False, "interrupted")
        self._tally.close_span(self._plan.window_s)
        growing = overload(self._flows[:-1]) if self._open else ""  # the last window is cut short, or sees no sends
        return Verdict(not growing, growing)

    async def _pass_window(self, until_ns: int, finish: "asyncio.Future[object]") -> None:
        """Wait until the window, or the load, is over, and tell how far it has come."""
        on_progress, work = self._plan.on_progress, self._plan.job.work
        while not self._stop.is_set() and not finish.done() and (now_ns := time.monotonic_ns()) < until_ns:
            step_ns = until_ns if on_progress is None else min(until_ns, now_ns + int(PROGRESS_S * 1e9))
            await self._pause_until(step_ns, finish)
            if on_progress is not None:
                self._tally.add(await self._plan.source.cut())
                done = self._tally.ended_clients if isinstance(work, ClientsJob) else self._tally.ended
                on_progress(done, work.total)

    async def _cut(self, border_ns: int) -> None:
        """End a window here (or begin the first), and look at it."""
        self._tally.add(await self._plan.source.cut())
        mark = self._tally.mark(border_ns)
        if len(self._tally.marks) < 2:
            return
        last = self._tally.marks[-2]
        length_s = (mark.time_ns - last.time_ns) / 1e9
        latency_us = self._tally.last_latency_us()
        self._figures.append(window_figures(latency_us, length_s, self._plan.percentile))
        if self._open:
            cores = (mark.cpu_ns - last.cpu_ns) / 1e9 / length_s / self._plan.source.processes
            mean_us = float(latency_us.mean()) if latency_us.size else float("nan")
            ended = mark.ended - last.ended
            self._flows.append(Flow(length_s, mark.due - last.due, ended, mark.due - mark.ended, mean_us, cores))

    def _verdict(self) -> Verdict:
        growing = overload(self._flows)
        return Verdict(False, growing) if growing else verdict(self._figures)

    async def _pause_until(self, time_ns: int, *events: "asyncio.Future[object]") -> None:
        """Wait, but not beyond `stop`, nor the first of `events`, nor the death of a process of load."""
        stopped: asyncio.Future[object] = asyncio.ensure_future(self._stop.wait())
        timeout_s = max(0.0, (time_ns - time.monotonic_ns()) / 1e9)
        await asyncio.wait(
            {stopped, *events, *self._plan.source.deaths}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        stopped.cancel()

    def record(
        self, asked: Load, ruling: Verdict, server: tuple[ServerCounters | None, ...], samples: Samples | None
    ) -> LevelRecord:
        """Everything that was measured."""
        tally, plan = self._tally, self._plan
        begin_ns = tally.marks[0].time_ns
        windows = _windows(tally.marks, begin_ns)
        work = plan.job.work
        return LevelRecord(
            load=asked,
            models=tuple(traffic.model for traffic in plan.job.traffic),
            windows=windows,
            reported=STABLE_WINDOWS if ruling.stable and not plan.to_the_end else len(windows),
            stable=ruling.stable,
            reason=ruling.reason,
            requests=tally.requests(),
            failures=tally.failures(),
            server=server,
            pool=Pool(
                processes=plan.source.processes,
                connections=tally.connections,
                limit=work.max_connections if isinstance(work, OpenJob) else 0,
                waited=tally.waited,
                unanswered=tally.marks[-1].due - tally.marks[-1].ended if self._open else 0,
            ),
            clients=tally.clients() if isinstance(work, ClientsJob) else None,
            samples=samples,
        )


def _warm_concurrency(work: Work) -> int:
    if isinstance(work, ClosedJob):
        return work.concurrency
    return work.at_once if isinstance(work, ClientsJob) else 1


def _windows(marks: Sequence[Mark], begin_ns: int) -> tuple[Window, ...]:
    borders = (-((begin_ns - np.array([mark.time_ns for mark in marks], np.int64)) // 1000)).tolist()
    return tuple(
        Window(start, end, (after.cpu_ns - before.cpu_ns) // 1000, after.due - before.due)
        for (start, end), (before, after) in zip(pairwise(borders), pairwise(marks), strict=True)
    )


def _difference(before: ServerCounters | None, after: ServerCounters | None) -> ServerCounters | None:
    if before is None or after is None:
        return None
    return replace(
        after,
        requests=after.requests - before.requests,
        inferences=after.inferences - before.inferences,
        executions=after.executions - before.executions,
        queue_ns=after.queue_ns - before.queue_ns,
        compute_input_ns=after.compute_input_ns - before.compute_input_ns,
        compute_infer_ns=after.compute_infer_ns - before.compute_infer_ns,
        compute_output_ns=after.compute_output_ns - before.compute_output_ns,
    )
