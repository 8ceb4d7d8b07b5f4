"""Levels over time: requests, latencies and errors in short bins, levels one after the other on one axis. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efserve.records import LevelRecord, LevelResult
from efserve.reports.scale import nice_step

MOST_BINS = 240  # of all levels together
LEAST_FOR_P99 = 20  # requests in a bin, below which its slowest stands for its p99

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where one level lies on the common axis, in seconds."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """One level in bins of equal length: borders (one more than bins) and a figure per bin; nan for no request."""

    borders_s: Floats
    requests_per_s: Floats
    errors_per_s: Floats
    p50_ms: Floats
    p99_ms: Floats


def stretches(levels: Sequence[LevelResult]) -> list[Stretch]:
    """The levels side by side; what passed between them (warm-up) is left out."""
    found, at_s = [], 0.0
    for level in levels:
        length_s = level.record.windows[-1].end_us / 1e6
        found.append(Stretch(at_s, at_s + length_s))
        at_s += length_s
    return found


def bin_length_s(total_s: float) -> float:
    """A round length, so that the whole run has at most `MOST_BINS` bins."""
    return nice_step(max(total_s, 1e-3) / MOST_BINS)


def bins(record: LevelRecord, length_s: float) -> Bins:
    """The level from its first window on, in bins of about `length_s`."""
    span_us = record.windows[-1].end_us
    count = max(1, round(span_us / 1e6 / length_s))
    borders_us = np.linspace(0, span_us, count + 1)
    bin_s = span_us / 1e6 / count
    cuts = np.searchsorted(record.requests.end_us, borders_us, side="right")
    errors = np.zeros(count)
    for failed in record.failures:
        errors += np.diff(np.searchsorted(failed.end_us, borders_us, side="right"))
    p50, p99 = np.full(count, np.nan), np.full(count, np.nan)
    for at in range(count):
        latency_us = record.requests.latency_us[cuts[at] : cuts[at + 1]]
        if latency_us.size:
            high = 99 if latency_us.size >= LEAST_FOR_P99 else 100
            p50[at], p99[at] = np.percentile(latency_us, (50, high)) / 1e3
    return Bins(borders_us / 1e6, np.diff(cuts) / bin_s, errors / bin_s, p50, p99)
