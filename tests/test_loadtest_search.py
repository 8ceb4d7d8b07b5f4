"""Searches against servers made up of a formula: do they find the boundary, and how many runs do they take?"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.errors import UsageError
from efserve.loadtest.search import (
    MOST_RUNS,
    LatencyGoal,
    Probes,
    SloGoal,
    binary,
    highest,
    linear,
    search,
    share_within,
)
from efserve.records import LevelResult, Window
from efserve.stats import level_statistics
from made_levels import level


def follow(probes: Probes, met: Callable[[float], bool]) -> tuple[float | None, list[float]]:
    """What a search finds, and the loads that it tried."""
    tried: list[float] = []
    try:
        load = next(probes)
        while True:
            tried.append(load)
            load = probes.send(met(load))
    except StopIteration as end:
        return end.value, tried


levels = st.lists(st.integers(1, 1000), min_size=1, max_size=50, unique=True)


@settings(deadline=None)
@given(levels, st.integers(0, 1001))
def test_linear_and_binary_find_the_highest_level_of_a_monotone_server(values: list[int], boundary: int) -> None:
    truth = max((value for value in values if value <= boundary), default=None)
    for probes in (linear(values), binary(values)):
        found, tried = follow(probes, lambda load: load <= boundary)
        assert found == truth
        assert len(set(tried)) == len(tried)


@settings(deadline=None)
@given(levels, st.integers(0, 1001))
def test_binary_is_quick_and_linear_stops_at_the_first_miss(values: list[int], boundary: int) -> None:
    _, tried = follow(binary(values), lambda load: load <= boundary)
    assert len(tried) <= 2 + math.ceil(math.log2(len(values))) if len(values) > 1 else len(tried) == 1
    _, tried = follow(linear(values), lambda load: load <= boundary)
    assert tried == sorted(values)[: sum(value <= boundary for value in values) + 1]


@settings(deadline=None)
@given(st.floats(1, 1e6), st.floats(0.01, 50), st.sampled_from([0.01, 0.05, 0.2]))
def test_highest_is_within_its_precision(boundary: float, factor: float, precision: float) -> None:
    found, tried = follow(highest(boundary * factor, precision), lambda load: load <= boundary)
    assert found is not None
    assert boundary / (1 + precision) * (1 - 1e-9) <= found <= boundary
    enclosing = abs(math.log2(factor)) + 2
    bisections = math.log2(math.log(2) / math.log(1 + precision)) * 1.5 + 1
    assert len(tried) <= enclosing + bisections + 2


def test_highest_gives_up_where_nothing_is_met() -> None:
    found, tried = follow(highest(100), lambda load: False)
    assert found is None
    assert tried == [100 / 2**number for number in range(7)]


def test_highest_ends_where_everything_is_met() -> None:
    found, tried = follow(highest(100, most_runs=12), lambda load: True)
    assert found == 100 * 2**11
    assert len(tried) == 12


@pytest.mark.parametrize("blip", range(12))
def test_one_spoilt_run_does_not_decide(blip: int) -> None:
    """A run near the end, or anywhere, says the opposite of the truth; the sides of the boundary are tried again."""
    count = 0

    def met(load: float) -> bool:
        nonlocal count
        count += 1
        return (load <= 1000) != (count == blip + 1)

    found, tried = follow(highest(100), met)
    assert found is not None
    assert 1000 / 1.05 <= found <= 1000
    assert len(tried) <= 20


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_server_whose_boundary_wavers_is_found_in_few_runs(seed: int) -> None:
    noise = random.Random(seed)
    found, tried = follow(highest(100), lambda load: load <= 1000 * math.exp(noise.gauss(0, 0.03)))
    assert found is not None
    assert 800 <= found <= 1200
    assert len(tried) <= MOST_RUNS


def test_rates_are_tried_that_people_can_read() -> None:
    _, tried = follow(highest(100), lambda load: load <= 873)
    assert all(float(f"{load:.3g}") == load for load in tried)


def test_searches_by_name() -> None:
    assert next(search("linear", [1, 2, 3])) == next(search("binary", [1, 2, 3])) == 1
    with pytest.raises(UsageError, match="binary or linear"):
        search("golden", [1])


def test_the_latency_goal_is_about_the_chosen_percentile() -> None:
    found = level([1000] * 90 + [50_000] * 10)
    assert LatencyGoal(2, 50)(found)
    assert not LatencyGoal(2, 95)(found)
    assert not LatencyGoal(5, None)(found)
    assert LatencyGoal(6, None)(found)
    assert str(LatencyGoal(6, None)) == "mean latency <= 6 ms"
    assert str(LatencyGoal(2.5, 99)) == "p99 latency <= 2.5 ms"


def test_failures_meet_no_goal() -> None:
    assert not LatencyGoal(2, None)(level([1000] * 99, failed=1))
    assert not LatencyGoal(2, None)(level([]))
    assert SloGoal(2)(level([1000] * 99, failed=1))
    assert not SloGoal(2)(level([1000] * 98, failed=2))
    assert not SloGoal(2)(level([]))


def test_the_slo_goal_wants_99_of_100_in_time() -> None:
    assert share_within(level([1000] * 3 + [3000]), 2) == 0.75
    assert SloGoal(2)(level([1000] * 99 + [3000]))
    assert not SloGoal(2)(level([1000] * 98 + [3000] * 2))
    assert str(SloGoal(2)) == "99 % within 2 ms"


def test_answers_that_fall_behind_meet_no_goal_however_quick_they_are() -> None:
    behind = level([1000] * 900, due=1000, unanswered=100)
    assert not SloGoal(2)(behind)
    assert not LatencyGoal(2, 99)(behind)
    assert SloGoal(2)(level([1000] * 995, due=1000, unanswered=5))
    assert SloGoal(2)(level([1000] * 40, due=42, unanswered=2))


def test_only_the_reported_windows_count() -> None:
    found = level([9000] * 50 + [1000] * 50)
    windows = (Window(0, 500_000, 0), Window(500_000, 1_000_000, 0))
    record = replace(found.record, windows=windows)
    assert share_within(LevelResult(record, level_statistics(record)), 2) == 1.0
