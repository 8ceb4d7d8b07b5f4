"""How long work takes: on the device by its events, or on this clock; the median over runs of a fixed time."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch

from gpu_proof_parts.rows import Scale

_LEAST_RUNS = 5


def device_ms(work: Callable[[], object], scale: Scale) -> float:
    """Median device time of one run. On the CPU the clock's."""
    return wall_ms(work, scale) if scale.cpu else _by_events(work, scale.measure_s)


def wall_ms(work: Callable[[], object], scale: Scale) -> float:
    """Median time of one run on this process's clock, until the device has finished."""
    for _ in range(2):
        work()
    synchronize(scale)
    took: list[float] = []
    until = perf_counter() + scale.measure_s
    while perf_counter() < until or len(took) < _LEAST_RUNS:
        start = perf_counter()
        work()
        synchronize(scale)
        took.append(perf_counter() - start)
    return 1e3 * statistics.median(took)


def synchronize(scale: Scale) -> None:
    """Waits for the device."""
    if not scale.cpu:
        torch.cuda.synchronize()


def _by_events(work: Callable[[], object], measure_s: float) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    took: list[float] = []
    until = perf_counter() + measure_s
    while perf_counter() < until or len(took) < _LEAST_RUNS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch
        start.record()
        work()
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end))
    return statistics.median(took)
