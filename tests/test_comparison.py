"""Ratios within rounds: what drifts for both sides does not decide."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparisons import comparison, turn
from efserve.comparison import FIGURES, ratio


def test_a_drift_that_both_share_does_not_decide() -> None:
    found = ratio(comparison([(turn(n), turn(round(1.1 * n))) for n in (1000, 500, 2000, 100)]), "inferences_per_s", 1)
    assert found.ratio == pytest.approx(1.1)
    assert found.interval
    assert found.interval.low == pytest.approx(found.interval.high) == pytest.approx(1.1)
    assert found.verdict == "+10.0 %"
    assert found.median == 825


def test_a_difference_within_its_interval_is_noise() -> None:
    rounds = [(turn(1000), turn(1100)), (turn(1000), turn(920)), (turn(1000), turn(1030))]
    found = ratio(comparison(rounds), "inferences_per_s", 1)
    assert found.interval
    assert 1 in found.interval
    assert found.verdict == "noise"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=6))
def test_the_ratio_is_the_geometric_mean(pairs: list[tuple[int, int]]) -> None:
    found = ratio(comparison([(turn(a), turn(b)) for a, b in pairs]), "inferences_per_s", 1)
    product = 1.0
    for first, second in pairs:
        product *= second / first
    assert found.ratio == pytest.approx(product ** (1 / len(pairs)))
    assert (found.interval is None) == (len(pairs) == 1)
    assert len(found.per_round) == len(pairs)


def test_the_first_has_the_ratio_1_to_itself() -> None:
    found = ratio(comparison([(turn(5), turn(6)), (turn(7), turn(8))]), "p99_us", 0)
    assert found.ratio == 1
    assert found.verdict == "noise"


def test_rounds_without_an_answer_are_left_out() -> None:
    rounds = [(turn(10), turn(0)), (turn(10), turn(20)), (turn(0), turn(20))]
    for figure in FIGURES:
        assert len(ratio(comparison(rounds), figure, 1).per_round) == 1
    nothing = ratio(comparison([(turn(10), turn(0))]), "p50_us", 1)
    assert (nothing.median, nothing.ratio, nothing.interval, nothing.verdict) == (None, None, None, "")


def test_latencies_of_all_rounds_are_merged() -> None:
    found = comparison([(turn(30, 1000), turn(1)), (turn(70, 3000), turn(1))]).latency_us(0)
    assert found.count == 100
    assert found.percentile(30) == pytest.approx(1000, rel=0.001)
    assert found.percentile(31) == pytest.approx(3000, rel=0.001)


def test_the_file_holds_every_turn_and_the_ratios() -> None:
    document = json.loads(comparison([(turn(10, 5000), turn(20, 2500))] * 2).as_json())
    assert document["schema_version"] == 1
    assert document["rounds"][1][1]["statistics"]["latency"]["p99_us"] == 2500
    assert document["rounds"][1][1]["latency_us"] == {"from": [2500], "to": [2503], "count": [20]}
    assert document["ratios"]["mean_us"][1]["ratio"] == pytest.approx(0.5)
    assert document["ratios"]["inferences_per_s"][1]["interval"] == {"low": pytest.approx(2), "high": pytest.approx(2)}
