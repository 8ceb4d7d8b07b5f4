"""Confidence intervals (95 %) of autocorrelated measurements, and of ratios: pure functions.

Latencies of one load level follow one another through the same queues, so that the textbook formula, which takes them
for independent, is too sure of itself. Here the stretch is cut into `BATCHES` parts, whose means are nearly
independent; what correlation is left between neighbours is estimated and paid for with a wider interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

BATCHES = 20  # 10 to 30 are enough and not too many: B. Schmeiser, Batch Size Effects, Operations Research 30 (1982)
LEAST_OBSERVATIONS = 2 * BATCHES
CONFIDENCE = 0.95
_MOST_CORRELATION = 0.9
_MOST_OF_TAIL = 0.8  # the share of the values beyond a percentile that its interval may use up
_SURELY_ALTERNATING = -0.5  # below it the correlation of 20 batches is no accident (about one in a hundred)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> "Interval":
        """The interval of the figure times a positive factor."""
        return Interval(self.low * factor, self.high * factor)


def rate_interval(end_us: npt.NDArray[np.int64], begin_us: int, until_us: int) -> Interval | None:
    """Interval of events per second, from ascending times in (begin, until]; None for fewer than 40 events."""
    if end_us.size < LEAST_OBSERVATIONS or until_us <= begin_us:
        return None
    borders = np.linspace(begin_us, until_us, BATCHES + 1)
    counts = np.diff(np.searchsorted(end_us, borders, side="right")).astype(np.float64)
    rates = counts * (BATCHES * 1e6 / (until_us - begin_us))
    return _around(float(end_us.size * 1e6 / (until_us - begin_us)), _half_width(rates))


def mean_interval(values: npt.NDArray[np.int64]) -> Interval | None:
    """Interval of the mean of values in the order in which they were measured; None for fewer than 40."""
    if values.size < LEAST_OBSERVATIONS:
        return None
    return _around(float(values.mean()), _half_width(_batch_means(values)))


def percentile_interval(values: npt.NDArray[np.int64], percentile: float) -> Interval | None:
    """Interval of a percentile; None when there are too few values for one.

    The share of values up to the percentile has an interval by batch means, p +- h; the quantiles at its ends are the
    interval of the percentile. P. Heidelberger, P. Lewis, Quantile Estimation in Dependent Sequences, Operations
    Research 32 (1984). Where p + h comes close to 1 nothing bounds the percentile from above.
    """
    if values.size < LEAST_OBSERVATIONS:
        return None
    middle = float(np.percentile(values, percentile))
    half = 100 * _half_width(_batch_means((values <= middle).astype(np.float64)))
    if half == 0:
        half = 0.0 if values.min() == values.max() else 100 / values.size
    if half > _MOST_OF_TAIL * (100 - percentile):
        return Interval(middle, middle) if half == 0 else None
    low, high = np.percentile(values, (max(percentile - half, 0), percentile + half))
    return Interval(float(low), float(high))


def ratio_interval(ratios: Sequence[float]) -> Interval | None:
    """Interval of the typical (geometric mean) ratio of independent pairs; None for fewer than two.

    Student's t on the logarithms: a ratio of 2 and one of 1/2 then average to 1.
    """
    if len(ratios) < 2 or min(ratios) <= 0:
        return None
    logs = np.log(ratios)
    half = student(len(ratios) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(ratios))
    middle = float(logs.mean())
    return Interval(math.exp(middle - half), math.exp(middle + half))


def quotient_interval(numerator: float, of_it: Interval, denominator: float, of_that: Interval) -> Interval | None:
    """Interval of the quotient of two independent figures, each with its own interval; None unless all are positive.

    The delta method on logarithms: the relative half widths add like the sides of a right angle.
    """
    if min(numerator, of_it.low, denominator, of_that.low) <= 0:
        return None
    middle = numerator / denominator
    low = math.hypot(math.log(numerator / of_it.low), math.log(of_that.high / denominator))
    high = math.hypot(math.log(of_it.high / numerator), math.log(denominator / of_that.low))
    return Interval(middle * math.exp(-low), middle * math.exp(high))


def student(freedom: float) -> float:
    """The factor t of a two-sided interval of 95 % with `freedom` >= 1 degrees.

    G. Hill, Algorithm 396: Student's t-Quantiles, Communications of the ACM 13 (1970).
    """
    tails, n = 1 - CONFIDENCE, freedom
    if n < 2:
        # between the closed forms for 1 and 2 degrees, as 1/n goes
        one, two = 1 / math.tan(tails * math.pi / 2), math.sqrt(2 / (tails * (2 - tails)) - 2)
        return two + (one - two) * (2 / n - 1)
    if n == 2:
        return math.sqrt(2 / (tails * (2 - tails)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tails) ** (2 / n)
    if y <= 0.05 + a:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2
        ) + 1 / y
        return math.sqrt(n * y)
    x = NormalDist().inv_cdf(tails / 2)
    y = x * x
    if n < 5:
        c += 0.3 * (n - 4.5) * (x + 0.6)
    c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return math.sqrt(n * math.expm1(a * y * y))


def _batch_means(values: npt.NDArray[np.generic]) -> Floats:
    """Means of `BATCHES` equal parts; what is left over at the begin is left out."""
    length = values.size // BATCHES
    means: Floats = values[values.size - BATCHES * length :].reshape(BATCHES, length).mean(axis=1)
    return means


def _half_width(batches: Floats) -> float:
    """Half the interval of the mean of all batches: t s sqrt((1 + r) / (1 - r) / m).

    s is the deviation of the m batches and r the correlation of neighbours, as in a process that forgets by the factor
    r per batch; its degrees of freedom are (m - 1) (1 - r) / (1 + r). The estimate of r is 1/m too small on average.
    """
    count = batches.size
    deviations = batches - batches.mean()
    squares = float(deviations @ deviations)
    if squares <= 1e-24 * float(batches @ batches):
        return 0.0
    correlation = float(deviations[1:] @ deviations[:-1]) / squares + 1 / count
    if _SURELY_ALTERNATING < correlation < 0:
        correlation = 0.0
    correlation = max(-_MOST_CORRELATION, min(correlation, _MOST_CORRELATION))
    spread = (1 + correlation) / (1 - correlation)
    freedom = max(1.0, (count - 1) / max(spread, 1))
    return student(freedom) * math.sqrt(squares / (count - 1) * spread / count)


def _around(middle: float, half: float) -> Interval:
    return Interval(max(middle - half, 0.0), middle + half)
