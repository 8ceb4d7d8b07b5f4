"""Comparing two runs: known differences are found, runs that do not differ are called noise, levels are matched."""

import io
from collections import Counter

import pytest
from rich.console import Console

from bench_results import HOSTILE, closed_result, hostile_result, measured_level, result_of
from efserve.intervals import Interval
from efserve.records import BenchResult, Load
from efserve.reports.differences import Difference, Verdict, change, differences, interval_text, percentage
from efserve.reports.differences_table import differences_table

REPETITIONS = 100


def verdicts(first: BenchResult, second: BenchResult) -> dict[str, Verdict]:
    (level,) = differences(first, second).levels
    return {found.figure: found.verdict for found in level.differences}


def one_level(seed: int, per_s: float = 1000, latency_us: float = 1000) -> BenchResult:
    return result_of(measured_level(Load.closed(8), per_s=per_s, latency_us=latency_us, seed=seed))


def test_runs_that_do_not_differ_are_noise_in_95_of_100() -> None:
    """Latencies that remember the one before, Poisson arrivals: false alarms stay at what the interval promises."""
    found = Counter[str]()
    for seed in range(REPETITIONS):
        found.update(verdicts(one_level(2 * seed), one_level(2 * seed + 1)).values())
    assert found.total() == 5 * REPETITIONS
    alarms = found["better"] + found["worse"]
    assert alarms <= 0.065 * (found.total() - found["unclear"])
    assert found["noise"] >= 0.85 * found.total()


def test_known_differences_are_found() -> None:
    for seed in range(10):
        told = verdicts(one_level(seed, 1000, 1000), one_level(100 + seed, 1250, 850))
        assert told["throughput"] == told["mean"] == told["p50"] == "better"
        told = verdicts(one_level(seed, 1250, 850), one_level(100 + seed, 1000, 1000))
        assert told["throughput"] == told["mean"] == told["p50"] == "worse"


def test_the_interval_holds_the_true_ratio() -> None:
    held = 0
    for seed in range(40):
        (level,) = differences(one_level(seed, 1000, 1000), one_level(500 + seed, 1000, 1300)).levels
        mean = level.differences[1]
        assert mean.interval is not None
        held += 1.3 in mean.interval
    assert held >= 35


def test_few_requests_are_no_verdict() -> None:
    told = verdicts(one_level(1, per_s=10), one_level(2, per_s=10))
    assert set(told.values()) == {"unclear"}


def test_levels_are_matched_by_their_load() -> None:
    first = result_of(*(measured_level(Load.closed(at), per_s=100, latency_us=100) for at in (1, 2, 4)))
    second = result_of(*(measured_level(load, per_s=100, latency_us=100) for load in (Load.closed(2), Load.rate(4))))
    found = differences(first, second)
    assert [level.name for level in found.levels] == ["concurrency 2"]
    assert found.only_first == ("concurrency 1", "concurrency 4")
    assert found.only_second == ("rate 4/s",)


def test_a_load_measured_twice_is_paired_in_order() -> None:
    twice = result_of(*(measured_level(Load.rate(100), per_s=at, latency_us=100) for at in (100, 200)))
    found = differences(twice, twice)
    assert [round(level.differences[0].first, -2) for level in found.levels] == [100, 200]


def test_what_else_differs_is_told() -> None:
    assert differences(closed_result(), closed_result(seed=3)).setup == ()
    found = differences(
        result_of(closed_result().levels[0], instances=1), result_of(closed_result().levels[0], model="b")
    )
    assert set(found.setup) == {
        "model: resnet50 → b",
        "instances: 1 → not given",
        "model configuration: {'name': 'resnet50'} → {'name': 'b'}",
    }


def test_levels_without_answers_have_no_latency_to_compare() -> None:
    found = differences(hostile_result(), hostile_result())
    assert [one.figure for one in found.levels[-1].differences] == ["throughput"]
    assert found.levels[-1].differences[0].verdict == "unclear"


@pytest.mark.parametrize(
    ("low", "high", "more_is_better", "verdict"),
    [
        (0.9, 1.1, True, "noise"),
        (1.0, 1.1, True, "noise"),
        (1.01, 1.1, True, "better"),
        (1.01, 1.1, False, "worse"),
        (0.5, 0.9, False, "better"),
        (0.5, 0.9, True, "worse"),
    ],
)
def test_noise_is_an_interval_that_includes_no_difference(
    low: float, high: float, more_is_better: bool, verdict: str
) -> None:
    assert Difference("f", "ms", 1.0, 1.05, Interval(low, high), more_is_better).verdict == verdict


def test_changes_are_percent_and_large_ones_factors() -> None:
    found = Difference("f", "ms", 100.0, 102.0, Interval(0.99, 1.31), True)
    assert (change(found), interval_text(found)) == ("+2.0 %", "-1.0 % … +31 %")
    assert [percentage(ratio) for ratio in (4.0, float("nan"), 0.5)] == ["x4", "-", "-50 %"]


def test_the_table_fits_80_columns_and_steers_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(differences_table(differences(hostile_result(), hostile_result()), f"a\x1b[2J{HOSTILE}", "b"))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "not stable in both" in " ".join(text.split())
    assert "noise" in text
