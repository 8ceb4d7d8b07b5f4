"""The histogram against sorted lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.histogram import MOST, RELATIVE_ERROR, Histogram

values = st.lists(st.one_of(st.integers(0, 5000), st.integers(0, MOST)), min_size=1, max_size=100)


def histogram_of(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(numbers, np.int64))
    return histogram


@settings(deadline=None)
@given(values, st.sampled_from([0, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_wrong_by_a_thousandth_at_most(numbers: list[int], percentile: float) -> None:
    rank = min(max(math.ceil(percentile / 100 * len(numbers)), 1), len(numbers))
    truth = sorted(numbers)[rank - 1]
    assert histogram_of(numbers).percentile(percentile) == pytest.approx(truth, rel=RELATIVE_ERROR, abs=0.5)


@settings(deadline=None)
@given(values, values)
def test_merging_is_counting_all(first: list[int], second: list[int]) -> None:
    merged, whole = histogram_of(first), histogram_of(first + second)
    merged.merge(histogram_of(second))
    assert (merged.count, merged.total, merged.least, merged.greatest) == (
        len(first) + len(second),
        sum(first + second),
        min(first + second),
        max(first + second),
    )
    assert all(np.array_equal(a, b) for a, b in zip(merged.buckets(), whole.buckets(), strict=True))


@settings(deadline=None)
@given(values)
def test_buckets_hold_the_values_and_do_not_overlap(numbers: list[int]) -> None:
    low, high, counts = histogram_of(numbers).buckets()
    assert counts.sum() == len(numbers)
    assert all(low[1:] > high[:-1])
    assert all(high - low <= np.maximum(low / 512, 0))
    for number in numbers:
        assert ((low <= number) & (number <= high)).sum() == 1


@settings(deadline=None)
@given(values, st.integers(0, 5000))
def test_the_share_up_to_a_value(numbers: list[int], bound: int) -> None:
    share = histogram_of(numbers).share_up_to(bound)
    assert sum(number <= bound for number in numbers) <= round(share * len(numbers))
    assert round(share * len(numbers)) <= sum(number <= bound * (1 + 4 * RELATIVE_ERROR) for number in numbers)


def test_an_empty_one_has_no_figures() -> None:
    empty = Histogram()
    empty.add(np.array([], np.int64))
    assert math.isnan(empty.mean)
    assert math.isnan(empty.percentile(50))
    assert math.isnan(empty.share_up_to(5))
    assert repr(empty) == "<Histogram of 0>"


def test_what_is_out_of_range_counts_at_its_end() -> None:
    histogram = histogram_of([-5, MOST + 5])
    assert (histogram.least, histogram.greatest) == (0, MOST)
    assert histogram.mean == MOST / 2
