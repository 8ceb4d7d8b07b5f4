"""Measures one point: a READY worker, one batch size, run until the figures are steady.

Owns the feeding of the worker and the rules of when to stop. Latency is measured with one batch at the worker,
throughput and utilisation with one running and one waiting, so that the worker always has work.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from efserve.errors import EfserveError, MeasurementFailed, UsageError
from efserve.inference import BatchTiming, InferRequest, Outcome
from efserve.model_config import ModelConfig
from efserve.noise import noise
from efserve.profiler.gauges import Gauge, Look
from efserve.profiles import STEADY_CI_PCT
from efserve.tensors import Shape, TensorSpec, to_wire
from efserve.worker.handle import Worker

BATCH_DEADLINE_S = 300.0  # a batch that takes longer is taken for one that never ends
WARM_UP_CHANGE_PCT = 5.0  # two warm-up rounds whose medians differ by less: the worker is warm
WARM_UP_ROUNDS = 10  # at most
MOST_TIME_FACTOR = 5  # give up on a steady median after this many times the minimum time
NS_PER_MS = 1e6
NS_PER_S = 1e9


class Batch(NamedTuple):
    """One batch that came back."""

    span_ms: float  # inside the worker: its first look at the inputs until the outputs are in shared memory
    roundtrip_ms: float  # from the parent's send to its hearing that the batch is done
    output_ns: int  # when the worker was done, `time.monotonic_ns()`
    device_ms: float | None  # of it on the device, where the engine tells


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a point is measured: at least this often and this long."""

    min_repetitions: int
    min_time_s: float

    def is_enough(self, spans_ms: Sequence[float], elapsed_s: float) -> bool:
        """True when the minima are met and the median is steady, or will not become so in any sensible time."""
        if len(spans_ms) < self.min_repetitions or elapsed_s < self.min_time_s:
            return False
        return median_ci_pct(spans_ms) <= STEADY_CI_PCT or elapsed_s >= MOST_TIME_FACTOR * self.min_time_s


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one point; the columns of a row are computed from it."""

    spans_ms: tuple[float, ...]
    device_ms: tuple[float, ...]  # empty where the engine does not tell
    roundtrips_ms: tuple[float, ...]
    batches_per_s: float  # with the worker never idle
    cpu_s_per_s: float  # processor time of the worker per second meanwhile
    others_cpu_s_per_s: float  # of all processes but the worker and this one, on the cores that efserve may use
    peak_memory_bytes: int
    looks: tuple[Look, ...]  # before, between the phases, after


class Feeder:
    """Keeps a worker supplied with copies of one request; `on_done` and `on_death` are the worker's callbacks."""

    def __init__(self, batch_deadline_s: float = BATCH_DEADLINE_S) -> None:
        self._batch_deadline_s = batch_deadline_s
        self._batches: list[Batch] = []
        self._sent_ns: dict[int, int] = {}  # slot -> when its batch was sent
        self._request: InferRequest | None = None
        self._repetitions = 0
        self._end_ns = 0
        self._error: EfserveError | None = None
        self._over: asyncio.Future[None] | None = None
        self._partner: Feeder | None = None
        self._counted = 0  # batches that count for `repetitions`

    def __repr__(self) -> str:
        return f"Feeder(done={len(self._batches)}, at_worker={len(self._sent_ns)}, error={self._error})"

    async def feed(
        self,
        worker: Worker,
        request: InferRequest,
        depth: int,
        repetitions: int,
        time_s: float,
        partner: "Feeder | None" = None,
    ) -> list[Batch]:
        """Run the request at least so often and so long, `depth` at a time; the batches in the order they ended.

        With a partner that is fed at the same time, both go on until each has had so many since the other's first.
        Raises what the model raised, or MeasurementFailed when the worker died or a batch does not end.
        """
        self._partner, self._counted = partner, 0
        self._batches, self._request, self._repetitions = [], request, repetitions
        self._end_ns = time.monotonic_ns() + int(time_s * NS_PER_S)
        self._over = asyncio.get_running_loop().create_future()
        if self._error is None:
            for slot in range(depth):
                self._send(worker, slot)
            await self._wait(self._over)
        if self._error is not None:
            raise self._error
        return self._batches

    def _has_enough(self, now_ns: int) -> bool:
        return self._error is not None or (self._counted >= self._repetitions and now_ns >= self._end_ns)

    async def _wait(self, over: "asyncio.Future[None]") -> None:
        done_before = -1
        while not over.done():
            if len(self._batches) == done_before:
                self._error = MeasurementFailed(f"a batch has been running for {self._batch_deadline_s:g} s; gave up")
                raise self._error
            done_before = len(self._batches)
            await asyncio.wait({over}, timeout=self._batch_deadline_s)

    def _send(self, worker: Worker, slot: int) -> None:
        assert self._request is not None
        self._sent_ns[slot] = time.monotonic_ns()
        worker.send(slot, (self._request,))

    def on_done(self, worker: Worker, slot: int, outcomes: list[Outcome], timing: BatchTiming | None) -> None:
        """Record the batch and send the next one, unless this was enough."""
        now_ns = time.monotonic_ns()
        sent_ns = self._sent_ns.pop(slot)
        (outcome,) = outcomes
        if isinstance(outcome, EfserveError):
            self._error = outcome
        else:
            assert timing is not None  # a batch without one has failed
            span_ms = (timing.output_ns - timing.start_ns) / NS_PER_MS
            device_ms = timing.device_ns / NS_PER_MS if timing.device_ns else None
            self._batches.append(Batch(span_ms, (now_ns - sent_ns) / NS_PER_MS, timing.output_ns, device_ms))
            self._counted += self._partner is None or bool(self._partner._batches)
        partner_has_enough = self._partner is None or self._partner._has_enough(now_ns)
        if self._error is None and not (self._has_enough(now_ns) and partner_has_enough):
            self._send(worker, slot)
        elif not self._sent_ns:
            self._finish()

    def on_death(self, worker: Worker, reason: str) -> None:
        """End the measurement: the worker is gone."""
        self._error = MeasurementFailed(f"the worker died: {reason}")
        self._finish()

    def _finish(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


async def measure(
    feeder: Feeder, worker: Worker, request: InferRequest, limits: Limits, machine_cores: Sequence[int], gauge: Gauge
) -> Point:
    """Warm the worker up for this request, then measure latency, then throughput; errors as `Feeder.feed`."""
    await warm_up(feeder, worker, request)
    looks = [gauge.look(worker.pid)]
    began = CpuTimes.now(worker.pid, machine_cores)
    batches: list[Batch] = []
    while not limits.is_enough([batch.span_ms for batch in batches], time.monotonic() - began.at_s):
        missing = max(1, limits.min_repetitions - len(batches))
        batches += await feeder.feed(worker, request, 1, missing, limits.min_time_s / 2)
    looks.append(gauge.look(worker.pid))
    saturated_from = CpuTimes.now(worker.pid, machine_cores)
    saturated = await feeder.feed(worker, request, 2, limits.min_repetitions // 2 + 2, limits.min_time_s / 2)
    ended = CpuTimes.now(worker.pid, machine_cores)
    looks.append(gauge.look(worker.pid))
    return Point(
        spans_ms=tuple(batch.span_ms for batch in batches),
        device_ms=tuple(batch.device_ms for batch in batches if batch.device_ms is not None),
        roundtrips_ms=tuple(batch.roundtrip_ms for batch in batches),
        batches_per_s=rate_per_s([batch.output_ns for batch in saturated]),
        cpu_s_per_s=(ended.worker_s - saturated_from.worker_s) / (ended.at_s - saturated_from.at_s),
        others_cpu_s_per_s=max(0.0, ended.others_s - began.others_s) / (ended.at_s - began.at_s),
        peak_memory_bytes=peak_memory_bytes(worker.pid),
        looks=tuple(looks),
    )


def rate_per_s(outputs_ns: Sequence[int]) -> float:
    """Batches per second from the first to the last of at least two that ended at these times."""
    return (len(outputs_ns) - 1) * NS_PER_S / (outputs_ns[-1] - outputs_ns[0])


class CpuTimes(NamedTuple):
    """Processor time used up to a moment."""

    at_s: float  # monotonic
    worker_s: float
    others_s: float  # on the cores of the machine that efserve may use, by all but the worker and this process

    @classmethod
    def now(cls, worker_pid: int, machine_cores: Sequence[int]) -> "CpuTimes":
        """The times up to this moment; MeasurementFailed when the worker is gone."""
        try:
            worker, own = psutil.Process(worker_pid).cpu_times(), os.times()
        except psutil.NoSuchProcess as exc:
            raise MeasurementFailed(f"the worker, process {worker_pid}, is gone") from exc
        worker_s = worker.user + worker.system
        cores = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in machine_cores]
        busy_s = sum(t.user + t.nice + t.system + t.irq + t.softirq + t.steal for t in cores)
        return cls(time.monotonic(), worker_s, busy_s - worker_s - own.user - own.system)


async def warm_up(feeder: Feeder, worker: Worker, request: InferRequest) -> None:
    """Run the request until its latency no longer changes; errors as `Feeder.feed`."""
    before_ms = 0.0
    for _ in range(WARM_UP_ROUNDS):
        batches = await feeder.feed(worker, request, 1, 3, 0.05)
        median_ms = float(np.median([batch.span_ms for batch in batches]))
        if abs(median_ms - before_ms) <= WARM_UP_CHANGE_PCT / 100 * median_ms:
            return
        before_ms = median_ms


def median_ci_pct(values: Sequence[float]) -> float:
    """Half the width of the median's 95 % confidence interval, in percent of the median.

    From order statistics: the median lies between the values of rank n/2 -+ 0.98 sqrt(n) in 95 of 100 samples, whatever
    their distribution (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered = np.sort(values)
    count = len(ordered)
    reach = 0.98 * count**0.5
    low = max(0, int(np.floor(count / 2 - reach)))
    high = min(count - 1, int(np.ceil(count / 2 + reach)))
    median = float(np.median(ordered))
    return 100 * float(ordered[high] - ordered[low]) / 2 / median if median > 0 else 0.0


def peak_memory_bytes(pid: int) -> int:
    """Most memory that the process has had at once, as Linux counts it (VmHWM)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as exc:
        raise MeasurementFailed(f"the worker, process {pid}, is gone") from exc
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MeasurementFailed(f"/proc/{pid}/status has no VmHWM: process {pid} has ended")


def processor_s(pid: int) -> float | None:
    """Processor time of all threads of a process, finer than clock ticks; None where the kernel does not tell."""
    total_ns, found = 0, False
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            total_ns += int(task.read_text().split()[0])
            found = True
    return total_ns / NS_PER_S if found else None


def input_shapes(config: ModelConfig, shape: dict[str, Shape]) -> dict[str, Shape]:
    """Dims of each input, without the batch where the model batches: free dimensions are 1 or as `shape` says.

    Raises UsageError where `shape` names no input of the model or contradicts its dims.
    """
    names = [spec.name for spec in config.inputs]
    for name in shape:
        if name not in names:
            raise UsageError(f"--shape {name}: no such input; '{config.name}' has {', '.join(names)}")
    return {spec.name: _dims(spec, shape.get(spec.name)) for spec in config.inputs}


def _dims(spec: TensorSpec, asked: Shape | None) -> Shape:
    if asked is None:
        return tuple(1 if dim == -1 else dim for dim in spec.dims)
    if len(asked) != len(spec.dims) or any(dim not in (-1, ask) for dim, ask in zip(spec.dims, asked, strict=True)):
        raise UsageError(f"--shape {spec.name}: {list(asked)} does not fit the model's dims {list(spec.dims)}")
    return asked


def random_request(config: ModelConfig, batch: int, shape: dict[str, Shape]) -> InferRequest:
    """One request of `batch` rows of random data, the same in every run; `shape` as in `input_shapes`."""
    rng = np.random.default_rng(0)
    dims = input_shapes(config, shape)
    rows = (batch,) if config.batches else ()
    shapes = tuple((*rows, *dims[spec.name]) for spec in config.inputs)
    tensors = tuple(
        to_wire(noise(rng, spec.datatype, whole)) for spec, whole in zip(config.inputs, shapes, strict=True)
    )
    return InferRequest(tensors, shapes, batch, shapes, done=lambda outcome: None)
