"""Axes of charts: from values to places between 0 and 1, the ticks, and how numbers are written. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_RATIO = 20.0  # latencies that differ more than this are drawn on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values and its ticks, ascending, all of them inside; `low < high`, and `0 < low` if logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Place of a value from 0 (low) to 1 (high); what is outside stands at the border."""
        if self.log:
            if value <= self.low:
                return 0.0
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)


def linear_scale(values: Iterable[float], *, zero: bool = True, count: int = 5) -> Scale:
    """A scale that ends on ticks of 1, 2 or 5 times a power of ten; from zero on unless told otherwise."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if not _apart(low, high):
        high = low + max(abs(low), 1.0)
    step = nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(_rounded(at * step, step) for at in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def exact_scale(low: float, high: float, count: int = 6) -> Scale:
    """A linear scale over just this range, as of time, with ticks inside."""
    high = high if _apart(low, high) else low + max(abs(low), 1.0)
    step = nice_step((high - low) / count)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Scale(low, high, tuple(_rounded(at * step, step) for at in numbers))


def log_scale(values: Iterable[float]) -> Scale:
    """A logarithmic scale from tick to tick: 1, 2, 5 times powers of ten, or powers of ten alone over a wide range."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if math.log10(high / low) <= 2.5 else (1,)
    steps = [factor * 10.0**power for power in decades for factor in factors]
    below = max(step for step in steps if step <= low * (1 + 1e-9))
    above = min(step for step in steps if step >= high * (1 - 1e-9) and step > below)
    return Scale(below, above, tuple(step for step in steps if below <= step <= above), log=True)


def latency_scale(values: Sequence[float]) -> Scale:
    """Linear from zero, or logarithmic where the greatest value is far above the least."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if positive and max(positive) > LOG_RATIO * min(positive):
        return log_scale(positive)
    return linear_scale(positive)


def _apart(low: float, high: float) -> bool:
    """Whether two ends are far enough apart for ticks between them."""
    return high - low > max(1e-9 * abs(low), 1e-9 * abs(high), 1e-12)


def nice_step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `rough` > 0."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _rounded(value: float, step: float) -> float:
    return round(value, max(0, 2 - math.floor(math.log10(step))))


def tick_text(value: float) -> str:
    """A number on an axis: 0.05, 2.5, 1,000, 20,000, 3M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.6g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def amount(value: float) -> str:
    """A figure to read: three significant digits, whole numbers above that, with thousands apart."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.3g}"
