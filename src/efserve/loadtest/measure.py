"""One level: load, windows, the decision that it is stable, and the record of it all."""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from efserve.client.connection import Connection, Listener
from efserve.loadtest.closed_loop import ClosedLoop
from efserve.loadtest.target import Traffic
from efserve.records import Failures, LevelRecord, Load, Micros, Requests, Samples, ServerCounters, Window
from efserve.stats import STABLE_WINDOWS, Verdict, WindowFigures, verdict, window_figures


class LevelSampler(Protocol):
    """Reads gauges of server and client while one level runs, in tasks of its own."""

    def start(self, begin_ns: int) -> None:
        """The first window begins, at this monotonic time."""

    async def stop(self) -> Samples | None:
        """The last window is over; called once, also after an error."""


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """What all levels have in common. `counters` reads the server's statistics per model, None where there are none."""

    connect: Callable[[Listener], Connection]
    traffic: tuple[Traffic, ...]  # per model
    counters: tuple[Callable[[], Awaitable[ServerCounters | None]], ...]  # per model
    sampler: LevelSampler | None
    warmup_s: float
    window_s: float
    duration_s: float
    percentile: int | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Mark:
    """A border between windows: the moment, the CPU time used until then, and the answers received."""

    time_ns: int
    cpu_ns: int
    answers: int


OnWindow = Callable[[int, WindowFigures], None]  # number of the window from 1, its figures


async def measure_level(plan: LevelPlan, asked: Load, stop: asyncio.Event, on_window: OnWindow) -> LevelRecord | None:
    """Measure until the level is stable, or the duration is over, or `stop` is set; None if that was in the warm-up.

    `on_window` is called while load runs: it should take well under a millisecond.
    """
    traffic = plan.traffic[0]
    load = ClosedLoop(plan.connect, traffic.requests, int(asked.value), plan.timeout_s, traffic.payload_bytes)
    samples = None
    load.start()
    try:
        await _pause(plan.warmup_s, stop)
        before = await _counters(plan)
        if stop.is_set():
            return None
        marks, ruling = await _windows(plan, load, stop, on_window)
        after = await _counters(plan)
        if plan.sampler is not None:
            samples = await plan.sampler.stop()
        await load.stop()
    finally:
        load.close()
    return LevelRecord(
        load=asked,
        models=tuple(single.model for single in plan.traffic),
        windows=_window_records(marks),
        reported=STABLE_WINDOWS if ruling.stable else len(marks) - 1,
        stable=ruling.stable,
        reason=ruling.reason,
        requests=_requests(load, marks),
        failures=_failures(load, marks),
        server=tuple(map(_difference, before, after)),
        samples=samples,
    )


async def _counters(plan: LevelPlan) -> tuple[ServerCounters | None, ...]:
    return tuple(await asyncio.gather(*(read() for read in plan.counters)))


async def _windows(
    plan: LevelPlan, load: ClosedLoop, stop: asyncio.Event, on_window: OnWindow
) -> tuple[list[_Mark], Verdict]:
    marks = [_mark(load)]
    figures: list[WindowFigures] = []
    begin_ns = marks[0].time_ns
    if plan.sampler is not None:
        plan.sampler.start(begin_ns)
    for number in range(1, int(plan.duration_s / plan.window_s + 1e-6) + 1):
        until_s = (begin_ns - time.monotonic_ns()) / 1e9 + number * plan.window_s
        await _pause(until_s, stop)
        marks.append(_mark(load))
        latency_us = _latencies_us(load, marks[-2].answers, marks[-1].answers)
        window_s = (marks[-1].time_ns - marks[-2].time_ns) / 1e9
        figures.append(window_figures(latency_us, window_s, plan.percentile))
        if stop.is_set():
            return marks, Verdict(False, "interrupted")
        on_window(number, figures[-1])
        if number >= STABLE_WINDOWS and verdict(figures).stable:
            break
    return marks, verdict(figures)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    """Wait, but not beyond `stop`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def _mark(load: ClosedLoop) -> _Mark:
    return _Mark(time.monotonic_ns(), time.process_time_ns(), len(load.ends_ns))


def _nanos(values: "array[int]") -> Micros:
    return np.frombuffer(values, np.int64)


def _latencies_us(load: ClosedLoop, first: int, last: int) -> Micros:
    return (_nanos(load.ends_ns[first:last]) - _nanos(load.starts_ns[first:last]) + 500) // 1000


def _since_us(times_ns: Micros, begin_ns: int) -> Micros:
    """Whole microseconds since the begin, rounded up: what comes after it is never counted as before."""
    return -((begin_ns - times_ns) // 1000)


def _window_records(marks: Sequence[_Mark]) -> tuple[Window, ...]:
    borders = _since_us(np.array([mark.time_ns for mark in marks], np.int64), marks[0].time_ns).tolist()
    return tuple(
        Window(start, end, (after.cpu_ns - before.cpu_ns) // 1000)
        for (start, end), (before, after) in zip(pairwise(borders), pairwise(marks), strict=True)
    )


def _requests(load: ClosedLoop, marks: Sequence[_Mark]) -> Requests:
    first, last = marks[0].answers, marks[-1].answers
    ends_us = _since_us(_nanos(load.ends_ns[first:last]), marks[0].time_ns)
    return Requests.closed(ends_us, _latencies_us(load, first, last))


def _failures(load: ClosedLoop, marks: Sequence[_Mark]) -> tuple[Failures, ...]:
    found = []
    for kind, failed_ns in load.failed_ns.items():
        times_ns = _nanos(failed_ns)
        inside = times_ns[(times_ns > marks[0].time_ns) & (times_ns <= marks[-1].time_ns)]
        if inside.size:
            found.append(Failures(kind, load.failure_texts[kind], _since_us(inside, marks[0].time_ns)))
    return tuple(found)


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
