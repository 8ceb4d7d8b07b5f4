"""Scales of charts: ticks that cover the values, places that keep their order, numbers that people can read."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.reports.scale import (
    Scale,
    amount,
    exact_scale,
    latency_scale,
    linear_scale,
    log_scale,
    nice_step,
    tick_text,
)

FINITE = st.floats(-1e12, 1e12, allow_nan=False)
POSITIVE = st.floats(1e-6, 1e12, allow_nan=False)


def check(scale: Scale, values: list[float]) -> None:
    assert scale.low < scale.high
    assert all(low < high for low, high in pairwise(scale.ticks))
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    places = [scale.at(value) for value in sorted(values)]
    assert all(0 <= place <= 1 for place in places)
    assert places == sorted(places)
    assert (scale.at(scale.low), scale.at(scale.high)) == (0.0, 1.0)


@given(st.lists(FINITE))
def test_a_linear_scale_covers_its_values_and_zero(values: list[float]) -> None:
    scale = linear_scale(values)
    check(scale, values)
    assert all(scale.low <= value * (1 - 1e-6) or value <= 0 for value in values)
    assert scale.low <= 0 <= scale.high
    assert 2 <= len(scale.ticks) <= 12
    slack = 1e-6 * (scale.high - scale.low)
    assert all(scale.low - slack <= value <= scale.high + slack for value in values)


@given(st.lists(POSITIVE))
def test_a_logarithmic_scale_covers_its_values(values: list[float]) -> None:
    scale = log_scale(values)
    check(scale, values)
    assert scale.low > 0
    assert all(scale.low * (1 - 1e-6) <= value <= scale.high * (1 + 1e-6) for value in values)
    assert len(scale.ticks) >= 2


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_an_exact_scale_has_just_its_ends(low: float, length: float) -> None:
    scale = exact_scale(low, low + length)
    assert scale.low == low
    assert all(low - 1e-6 * scale.high <= tick <= scale.high * (1 + 1e-6) for tick in scale.ticks)
    assert len(scale.ticks) <= 14


@given(POSITIVE)
def test_a_nice_step_is_1_2_or_5_times_a_power_of_ten(rough: float) -> None:
    step = nice_step(rough)
    assert rough * (1 - 1e-6) <= step <= rough * 2.5 * (1 + 1e-6) + 1e-12
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-6


def test_latencies_far_apart_are_logarithmic() -> None:
    assert latency_scale([1.0, 50.0]).log
    assert not latency_scale([1.0, 5.0]).log
    assert not latency_scale([]).log


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (2.5, "2.5"), (1000, "1,000"), (20_000, "20,000"), (3e6, "3M"), (1.5e9, "1.5G")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1.00"), (0.0723, "0.0723"), (12.345, "12.3"), (345.6, "346"), (12831.5, "12,832"), (math.nan, "-")],
)
def test_amounts_have_three_digits(value: float, text: str) -> None:
    assert amount(value) == text
