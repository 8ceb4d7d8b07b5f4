"""Intended send times of requests: pure functions of a rate, a distribution and a seed, and the times in a trace.

A Poisson or gamma process at a varying rate is one at rate 1 whose times are mapped through the inverse of the
expected number of requests: so every distribution goes with every shape. No clock, no I/O.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efserve.errors import UsageError

DISTRIBUTIONS = ("constant", "poisson", "gamma")
SHAPES = ("step", "ramp", "sine", "burst")
CYCLES = 3  # of a sine, and bursts, in one level
BURST_PART = 0.2  # of each cycle that is burst
STEPS = 5  # of a step shape whose STEP is not given
_GRID = 3000  # pieces into which a slope is cut: within one, requests are spread as if the rate were its mean

Seconds = npt.NDArray[np.float64]  # [n], ascending


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate over time, linear between the points; a jump is two points at one time."""

    time_s: tuple[float, ...]  # from 0 on
    per_s: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """The end of the last piece."""
        return self.time_s[-1]

    def expected(self) -> Seconds:
        """Requests expected until each point."""
        time_s, per_s = np.array(self.time_s), np.array(self.per_s)
        pieces = np.diff(time_s) * (per_s[1:] + per_s[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(pieces)])


def steady(per_s: float, duration_s: float) -> RateCurve:
    """The same rate all the time."""
    return RateCurve((0.0, duration_s), (per_s, per_s))


def shaped(shape: str, low: float, high: float, duration_s: float, step: float = 0.0) -> RateCurve:
    """A rate between `low` and `high` requests/s.

    step: from low to high in steps of `step` (0: five steps), each as long as the others. ramp: a straight line.
    sine: three waves from low to high and back. burst: low, but high for the last fifth of each third.
    """
    grid_s = np.linspace(0, duration_s, _GRID + 1)
    if shape == "ramp":
        return RateCurve(tuple(grid_s.tolist()), tuple(np.linspace(low, high, _GRID + 1).tolist()))
    if shape == "step":
        count = int((high - low) / step + 1e-9) + 1 if step else STEPS
        rates = [low + index * (step or (high - low) / (STEPS - 1)) for index in range(count)]
        return _pieces([(rate, duration_s / count) for rate in rates])
    if shape == "burst":
        cycle_s = duration_s / CYCLES
        return _pieces([(low, cycle_s * (1 - BURST_PART)), (high, cycle_s * BURST_PART)] * CYCLES)
    angle = np.linspace(0, 2 * math.pi * CYCLES, _GRID + 1)
    per_s = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    return RateCurve(tuple(grid_s.tolist()), tuple(per_s.tolist()))


def _pieces(pieces: Sequence[tuple[float, float]]) -> RateCurve:
    times, rates, at_s = [0.0], [pieces[0][0]], 0.0
    for index, (rate, length_s) in enumerate(pieces):
        if index:
            times.append(at_s)
            rates.append(rate)
        at_s += length_s
        times.append(at_s)
        rates.append(rate)
    return RateCurve(tuple(times), tuple(rates))


def intended(curve: RateCurve, distribution: str, seed: int, cv: float = 1.0) -> Seconds:
    """Send times along a curve, in seconds from its begin and before its end.

    constant: one whenever another whole request is due, the first at 0. poisson: independent of one another. gamma:
    gaps of that coefficient of variation `cv` (1 is poisson; more is burstier). The same seed gives the same times.
    """
    expected = curve.expected()
    total = float(expected[-1])
    if distribution == "constant":
        units = np.arange(math.ceil(total - 1e-9), dtype=np.float64)
    else:
        units = _random_units(total, distribution, seed, cv)
    times: Seconds = np.interp(units, expected, curve.time_s)
    return times


def _random_units(total: float, distribution: str, seed: int, cv: float) -> Seconds:
    """Times of a process at rate 1 before `total`."""
    random = np.random.default_rng(seed)
    shape = 1.0 if distribution == "poisson" else 1 / cv**2
    parts: list[Seconds] = []
    reached = 0.0
    while reached < total:
        count = int((total - reached) * 1.05) + 100
        gaps = random.standard_gamma(shape, count) / shape
        parts.append(reached + np.cumsum(gaps))
        reached = float(parts[-1][-1])
    units = np.concatenate([np.empty(0), *parts])
    return units[units < total]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a schedule file says: when to send, and to which model ("": the one under test)."""

    time_s: Seconds
    models: tuple[str, ...]  # per time


def parse_trace(text: str, name: str) -> Trace:
    """One request per line: a time in seconds and, if need be, a model, separated by a comma or spaces.

    Times count from the first one and may not go back. Empty lines, and what follows `#`, are skipped; a first line
    without a number is a heading. Raises UsageError that names the line.
    """
    times: list[float] = []
    models: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        time_s = _seconds(words[0])
        if time_s is None or len(words) > 2:
            if not times and time_s is None and number == 1:
                continue
            raise UsageError(
                f"--schedule {name}, line {number}: expected SECONDS or SECONDS,MODEL; got '{line.strip()[:60]}'"
            )
        if times and time_s < times[-1]:
            raise UsageError(
                f"--schedule {name}, line {number}: {time_s:g} s is before the line above it, {times[-1]:g} s; "
                "sort the file by time"
            )
        times.append(time_s)
        models.append(words[1] if len(words) == 2 else "")
    if not times:
        raise UsageError(f"--schedule {name}: it has no request; expected a time in seconds on each line")
    return Trace(np.array(times) - times[0], tuple(models))


def _seconds(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
