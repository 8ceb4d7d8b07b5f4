"""The arithmetic of pairs: which batches of two sides ran side by side, and how much slower each side was.

Pure; `pair_runs.py` runs the workers.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efserve.errors import MeasurementFailed
from efserve.profiler.sampling import Batch, median_ci_pct, rate_per_s
from efserve.profiles import STEADY_CI_PCT

MIN_ROUNDS = 5
MAX_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which one side was never idle: its rate and its batches' latencies in the worker."""

    batches_per_s: float
    spans_ms: tuple[float, ...]
    cpu_ms: float | None  # processor time of a batch; None: not told
    dram_pct: float | None = None  # used of the device memory's bandwidth; None: not told


@dataclass(frozen=True, slots=True)
class Round:
    """One side alone and beside the other, shortly after one another."""

    alone: Stretch
    beside: Stretch

    @property
    def slowdown(self) -> float:
        """How many times as long a batch took beside the other."""
        return self.alone.batches_per_s / self.beside.batches_per_s

    @property
    def cpu_slowdown(self) -> float | None:
        """The same in processor time, which does not run while another process has the core."""
        return self.beside.cpu_ms / self.alone.cpu_ms if self.beside.cpu_ms and self.alone.cpu_ms else None


@dataclass(frozen=True, slots=True)
class Slowdown:
    """All rounds of one side in figures; rates in batches per second."""

    slowdown: float
    low: float
    high: float
    cpu_slowdown: float | None
    rounds: int
    alone_per_s: float
    beside_per_s: float
    alone_p99_ms: float
    beside_p99_ms: float


def stretch(batches: Sequence[Batch], cpu_ms: float | None, dram_pct: float | None = None) -> Stretch:
    """The stretch that these batches make, in the order they ended; MeasurementFailed for fewer than two."""
    if len(batches) < 2:
        raise MeasurementFailed("fewer than two batches ended while both models ran: give a longer --min-time")
    return Stretch(
        rate_per_s([batch.output_ns for batch in batches]), tuple(batch.span_ms for batch in batches), cpu_ms, dram_pct
    )


def side_by_side(first: Sequence[Batch], second: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Those of each side that ended while both sides were running: from the later start to the earlier end."""
    begin_ns = max(first[0].output_ns, second[0].output_ns)
    end_ns = min(first[-1].output_ns, second[-1].output_ns)
    return _within(first, begin_ns, end_ns), _within(second, begin_ns, end_ns)


def _within(batches: Sequence[Batch], begin_ns: int, end_ns: int) -> list[Batch]:
    return [batch for batch in batches if begin_ns <= batch.output_ns <= end_ns]


def are_enough(rounds: Sequence[Round]) -> bool:
    """True when the median slowdown is known, or will not become so in any sensible time."""
    if len(rounds) < MIN_ROUNDS:
        return False
    return len(rounds) >= MAX_ROUNDS or median_ci_pct([one.slowdown for one in rounds]) <= STEADY_CI_PCT


def summary(rounds: Sequence[Round]) -> Slowdown:
    """The median slowdown with its quartiles: what a disturbed round says hardly counts."""
    in_cpu_time = [one.cpu_slowdown for one in rounds if one.cpu_slowdown is not None]
    low, middle, high = (float(value) for value in np.percentile([one.slowdown for one in rounds], (25, 50, 75)))
    return Slowdown(
        slowdown=round(middle, 4),
        low=round(low, 4),
        high=round(high, 4),
        cpu_slowdown=round(statistics.median(in_cpu_time), 4) if in_cpu_time else None,
        rounds=len(rounds),
        alone_per_s=statistics.median(one.alone.batches_per_s for one in rounds),
        beside_per_s=statistics.median(one.beside.batches_per_s for one in rounds),
        alone_p99_ms=_p99_ms([one.alone for one in rounds]),
        beside_p99_ms=_p99_ms([one.beside for one in rounds]),
    )


def dram_load(alone: Sequence[Stretch], share_pct: float) -> float:
    """How much of the memory's bandwidth a model would use on the whole device, 0..1, by its use alone on a share.

    0 where nothing tells.
    """
    told = [one.dram_pct for one in alone if one.dram_pct is not None]
    return min(1.0, round(statistics.median(told) / share_pct, 4)) if told else 0.0


def _p99_ms(stretches: Sequence[Stretch]) -> float:
    return round(float(np.percentile([span for one in stretches for span in one.spans_ms], 99)), 4)
