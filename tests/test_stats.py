"""Statistics against definitions written out naively."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.records import Failures, LevelRecord, Load, LoadedModel, Micros, Requests, ServerCounters, Window
from efserve.stats import (
    WindowFigures,
    chosen_latency_us,
    latency_summary,
    level_statistics,
    server_split,
    verdict,
    window_figures,
)

latencies = st.lists(st.integers(0, 10**8), min_size=1, max_size=200)


def micros(values: list[int]) -> Micros:
    return np.array(values, np.int64)


def naive_percentile(values: list[int], percentile: float) -> float:
    """Linear interpolation between the closest ranks of the sorted values."""
    ordered = sorted(values)
    rank = percentile / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


@given(latencies)
def test_summary_is_its_definition(values: list[int]) -> None:
    summary = latency_summary(micros(values))
    assert summary is not None
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert summary.mean_us == pytest.approx(mean)
    assert summary.deviation_us == pytest.approx(deviation, abs=1e-3)
    assert summary.max_us == max(values)
    for percentile, found in (
        (50, summary.p50_us),
        (90, summary.p90_us),
        (95, summary.p95_us),
        (99, summary.p99_us),
        (99.9, summary.p99_9_us),
    ):
        assert found == pytest.approx(naive_percentile(values, percentile))


def test_no_requests_have_no_latency() -> None:
    assert latency_summary(micros([])) is None
    assert math.isnan(window_figures(micros([]), 1.0).latency_us)


@given(latencies, st.sampled_from([None, 50, 90, 95, 99]))
def test_a_window_and_a_level_agree_on_the_chosen_latency(values: list[int], percentile: int | None) -> None:
    summary = latency_summary(micros(values))
    assert summary is not None
    figures = window_figures(micros(values), 2.0, percentile)
    assert figures.latency_us == pytest.approx(chosen_latency_us(summary, percentile))
    assert figures.requests_per_s == len(values) / 2


windows = st.lists(
    st.builds(
        WindowFigures,
        requests=st.integers(1, 1000),
        requests_per_s=st.floats(1, 1000),
        latency_us=st.floats(1, 1000),
    ),
    max_size=6,
)


@given(windows)
def test_stable_means_that_the_last_three_windows_are_within_a_tenth(figures: list[WindowFigures]) -> None:
    found = verdict(figures)
    last = figures[-3:]
    rates, times = [w.requests_per_s for w in last], [w.latency_us for w in last]
    expected = len(last) == 3 and max(rates) <= 1.1 * min(rates) and max(times) <= 1.1 * min(times)
    assert found.stable == expected
    assert bool(found.reason) != found.stable


def test_only_the_last_windows_count() -> None:
    steady = WindowFigures(100, 100.0, 50.0)
    wild = WindowFigures(500, 500.0, 9.0)
    assert verdict([wild, steady, steady, steady]).stable
    assert "throughput" in verdict([steady, steady, wild]).reason
    assert "latency" in verdict([steady, steady, replace(steady, latency_us=60.0)]).reason
    assert "without a single answer" in verdict([steady, steady, WindowFigures(0, 0.0, math.nan)]).reason
    assert "longer --window" in verdict([steady, steady, replace(wild, requests=3)]).reason


def level(ends: list[int], *, borders: list[int], reported: int, failed: list[int], rows: int = 1) -> LevelRecord:
    return LevelRecord(
        load=Load.closed(2),
        models=(LoadedModel("m", "", rows),),
        windows=tuple(Window(start, end, (end - start) // 2) for start, end in pairwise(borders)),
        reported=reported,
        stable=True,
        reason="",
        requests=Requests.closed(micros(ends), micros([7 * index for index in range(len(ends))])),
        failures=(Failures("timeout", "no answer", micros(failed)),),
        server=(None,),
    )


ends_us = st.lists(st.integers(1, 6000), max_size=60).map(sorted)


@given(ends_us, ends_us, st.integers(1, 6), st.integers(1, 4))
def test_requests_belong_to_the_window_in_which_they_ended(
    ends: list[int], failed: list[int], reported: int, rows: int
) -> None:
    borders = [1000 * index for index in range(7)]
    found = level_statistics(level(ends, borders=borders, reported=reported, failed=failed, rows=rows))
    begin = borders[-1] - 1000 * reported
    inside = [index for index, end in enumerate(ends) if begin < end <= 6000]
    duration_s = reported / 1000
    assert found.requests == len(inside)
    assert found.requests_per_s == pytest.approx(len(inside) / duration_s)
    assert found.inferences_per_s == pytest.approx(rows * len(inside) / duration_s)
    assert found.errors.get("timeout", 0) == sum(begin < end <= 6000 for end in failed)
    assert found.client_cpu_cores == pytest.approx(0.5)
    if inside:
        assert found.latency is not None
        assert found.latency.max_us == 7 * inside[-1]


def test_a_client_that_uses_a_core_is_said_to_be_the_limit() -> None:
    calm = level([5], borders=[0, 1000], reported=1, failed=[])
    assert not level_statistics(calm).client_bound
    assert level_statistics(replace(calm, windows=(Window(0, 1000, 950),))).client_bound


def test_figures_have_intervals_where_there_is_enough_to_tell() -> None:
    record = level(list(range(10, 2010, 10)), borders=[0, 2000], reported=1, failed=[])
    shuffled = np.random.default_rng(0).permutation(record.requests.latency_us)
    found = level_statistics(replace(record, requests=Requests.closed(record.requests.end_us, shuffled)))
    intervals = found.intervals
    assert found.latency
    assert intervals.requests_per_s
    assert intervals.mean_us
    assert intervals.p90_us
    assert found.requests_per_s in intervals.requests_per_s
    assert found.latency.mean_us in intervals.mean_us
    assert found.latency.p90_us in intervals.p90_us
    assert intervals.p99_9_us is None
    assert level_statistics(record).intervals.p90_us is None  # latency grew all the time: there is no such figure
    assert level_statistics(level([5], borders=[0, 1000], reported=1, failed=[])).intervals.mean_us is None


def test_server_split_is_per_request_and_per_run() -> None:
    split = server_split(ServerCounters(10, 40, 5, 20_000, 10_000, 50_000, 5_000))
    assert split is not None
    assert (split.queue_us, split.compute_input_us, split.compute_infer_us, split.compute_output_us) == (2, 1, 5, 0.5)
    assert split.mean_batch == 8


def test_a_server_that_counted_nothing_has_no_split() -> None:
    assert server_split(None) is None
    assert server_split(ServerCounters(0, 0, 0, 0, 0, 0, 0)) is None
