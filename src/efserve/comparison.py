"""Comparisons: what several servers did under the same load in turns, and the ratios that follow.

Owns the values, their JSON form and the arithmetic. A ratio is taken within each round, where both sides had the same
machine at nearly the same time, and only then averaged: a machine that drifts does not decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from efserve.histogram import Histogram
from efserve.intervals import Interval, ratio_interval
from efserve.records import LatencySummary, LevelStatistics, Load, Machine, Target

COMPARISON_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Contender:
    """One server of a comparison."""

    name: str
    options: str  # its URL, or the options of the embedded server, as given
    target: Target


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """What one contender did in one round; of its latencies a histogram, so that those of all rounds can be merged."""

    statistics: LevelStatistics
    latency_us: Histogram
    stable: bool
    reason: str  # why it was not stable


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Comparison:
    """A whole comparison: the content of its file. Rounds are whole: a turn for each contender, in their order."""

    schema_version: int = COMPARISON_SCHEMA_VERSION
    efserve_version: str
    started_at: str  # ISO 8601, UTC
    machine: Machine
    config: dict[str, Any]
    load: Load
    contenders: tuple[Contender, ...]
    rounds: tuple[tuple[Turn, ...], ...]
    interrupted: bool

    def as_json(self) -> bytes:
        """The comparison with the ratios that follow from it."""
        ratios = {name: [ratio(self, name, index) for index in range(len(self.contenders))] for name in FIGURES}
        whole = msgspec.to_builtins(self, enc_hook=_buckets) | {"ratios": msgspec.to_builtins(ratios)}
        return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"

    def latency_us(self, index: int) -> Histogram:
        """The latencies of contender `index` in all rounds together."""
        merged = Histogram()
        for turns in self.rounds:
            merged.merge(turns[index].latency_us)
        return merged


def _buckets(value: object) -> dict[str, list[int]]:
    """JSON of a histogram: from, to (both included) and count of each bucket that holds something."""
    assert isinstance(value, Histogram)
    low, high, count = value.buckets()
    return {"from": low.tolist(), "to": high.tolist(), "count": count.tolist()}


def _latency(field: str) -> Callable[[LevelStatistics], float]:
    def read(statistics: LevelStatistics) -> float:
        summary: LatencySummary | None = statistics.latency
        return float("nan") if summary is None else float(getattr(summary, field))

    return read


# What is compared, by name; not a number where no request succeeded.
FIGURES: dict[str, Callable[[LevelStatistics], float]] = {
    "inferences_per_s": lambda statistics: statistics.inferences_per_s or float("nan"),
    "mean_us": _latency("mean_us"),
    "p50_us": _latency("p50_us"),
    "p99_us": _latency("p99_us"),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A contender's figure, and its ratio to the first contender's, over the rounds in which both have one."""

    median: float | None  # the figure itself, of all rounds; None when there is none
    ratio: float | None  # geometric mean of the rounds' ratios
    interval: Interval | None  # of the ratio, 95 %; None for fewer than two rounds
    per_round: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """`noise` where the interval holds 1; else how much more or less; empty where nothing can be said."""
        if self.ratio is None or self.interval is None:
            return ""
        return "noise" if 1 in self.interval else f"{100 * (self.ratio - 1):+.1f} %"


def ratio(comparison: Comparison, figure: str, index: int) -> Ratio:
    """The figure of contender `index` beside that of the first."""
    read = FIGURES[figure]
    pairs = np.array([(read(turns[0].statistics), read(turns[index].statistics)) for turns in comparison.rounds])
    pairs = pairs.reshape(-1, 2)
    own = pairs[~np.isnan(pairs[:, 1]), 1]
    both = pairs[~np.isnan(pairs).any(axis=1)]
    ratios = tuple((both[:, 1] / both[:, 0]).tolist())
    return Ratio(
        median=float(np.median(own)) if own.size else None,
        ratio=float(np.exp(np.log(ratios).mean())) if ratios else None,
        interval=ratio_interval(ratios),
        per_round=ratios,
    )
