"""Intervals on series whose truth is known: how often they cover it, and what they are in simple cases."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.intervals import (
    Interval,
    mean_interval,
    percentile_interval,
    quotient_interval,
    rate_interval,
    ratio_interval,
    student,
)

Series = npt.NDArray[np.int64]
MEAN, DEVIATION = 100_000, 10_000


def series(correlation: float, length: int, count: int) -> list[Series]:
    """Stationary AR(1) series: each value remembers the last by the factor `correlation`; normal, in whole units."""
    random = np.random.default_rng(7)
    noise = random.standard_normal((length, count)) * math.sqrt(1 - correlation**2)
    values = np.empty((length, count))
    values[0] = random.standard_normal(count)
    for index in range(1, length):
        values[index] = correlation * values[index - 1] + noise[index]
    return list((MEAN + DEVIATION * values).astype(np.int64).T)


def coverage(truth: float, interval: Callable[[Series], Interval | None], all_series: list[Series]) -> float:
    found = [one for values in all_series if (one := interval(values))]
    assert len(found) > 0.95 * len(all_series)
    return sum(truth in one for one in found) / len(found)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5, 0.9, 0.97])
def test_the_mean_is_covered_whatever_the_correlation(correlation: float) -> None:
    assert 0.92 <= coverage(MEAN, mean_interval, series(correlation, 4000, 300)) <= 0.99


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("percentile", [50, 90, 95])
def test_percentiles_are_covered(correlation: float, percentile: float) -> None:
    truth = MEAN + DEVIATION * NormalDist().inv_cdf(percentile / 100)
    found = coverage(truth, lambda values: percentile_interval(values, percentile), series(correlation, 4000, 300))
    assert 0.92 <= found <= 0.995


def test_the_textbook_formula_would_be_too_sure() -> None:
    def independent(values: Series) -> Interval:
        half = 1.96 * values.std() / math.sqrt(values.size)
        return Interval(values.mean() - half, values.mean() + half)

    assert coverage(MEAN, independent, series(0.9, 4000, 300)) < 0.5


def test_a_rate_is_covered() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        ends = np.cumsum(random.exponential(1000, 5000)).astype(np.int64)
        found = rate_interval(ends[ends <= 3_000_000], 0, 3_000_000)
        assert found
        covered += 1000 in found
    assert 0.92 <= covered / 300 <= 0.99


def test_answers_that_come_in_bursts_keep_the_rate_narrow() -> None:
    ends = np.repeat(np.arange(100_000, 3_000_001, 100_000), 8)
    found = rate_interval(ends, 0, 3_000_000)
    assert found
    assert 80 in found
    assert found.high - found.low < 0.1 * 80


def test_few_values_have_no_interval() -> None:
    few = np.arange(39)
    assert mean_interval(few) is percentile_interval(few, 50) is rate_interval(few, 0, 39) is None
    assert ratio_interval([1.1]) is None
    assert percentile_interval(np.arange(1000), 99.9) is None


def test_equal_values_are_certain() -> None:
    equal = np.full(100, 7)
    assert mean_interval(equal) == percentile_interval(equal, 99) == Interval(7, 7)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=40, max_size=300), st.sampled_from([50, 90, 99]))
def test_an_interval_holds_its_own_figure(values: list[int], percentile: float) -> None:
    array = np.array(values)
    found = mean_interval(array)
    assert found
    assert found.low <= array.mean() * (1 + 1e-9)
    assert found.high >= array.mean() * (1 - 1e-9)
    percentiles = percentile_interval(array, percentile)
    assert percentiles is None or float(np.percentile(array, percentile)) in percentiles


# From the printed table of Student's t, two-sided, 95 %.
@pytest.mark.parametrize(
    ("freedom", "factor"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (19, 2.093), (100, 1.984)],
)
def test_student(freedom: int, factor: float) -> None:
    assert student(freedom) == pytest.approx(factor, abs=6e-4)


def test_student_falls_with_the_degrees_of_freedom() -> None:
    factors = [student(freedom) for freedom in np.linspace(1, 30, 300)]
    assert factors == sorted(factors, reverse=True)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=10))
def test_ratios_the_other_way_round_have_the_interval_the_other_way_round(ratios: list[float]) -> None:
    found, other = ratio_interval(ratios), ratio_interval([1 / ratio for ratio in ratios])
    assert found
    assert other
    assert other.low == pytest.approx(1 / found.high)
    assert other.high == pytest.approx(1 / found.low)


def test_ratios_of_pairs_forget_a_drift_that_both_share() -> None:
    drift = [100.0, 80.0, 120.0, 60.0]
    found = ratio_interval([1.1 * value / value for value in drift])
    assert found
    assert (found.low, found.high) == pytest.approx((1.1, 1.1))


def test_quotient_is_covered() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(500):
        above, below = random.normal(100, 2), random.normal(50, 2)
        found = quotient_interval(
            above, Interval(above - 3.92, above + 3.92), below, Interval(below - 3.92, below + 3.92)
        )
        assert found
        covered += 2 in found
    assert 0.92 <= covered / 500 <= 0.98
    assert quotient_interval(1, Interval(0, 2), 1, Interval(0.5, 2)) is None


def test_an_interval_scales() -> None:
    assert Interval(1, 2).scaled(4) == Interval(4, 8)
