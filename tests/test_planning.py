"""Policies against the checker: every plan holds, every refusal is true, and more room never needs more devices."""

import time
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.errors import UsageError
from efserve.planning.check import check
from efserve.planning.plan import Capacity, Demand, Device, NoPlan, Plan, Point, Problem
from efserve.planning.policies import POLICIES, make_plan, most, most_factor

SHARES = (25.0, 50.0, 100.0)
QUICK = ("gpulet", "temporal", "static", "best")


def capacity(model: str, per_row_ms: float, fixed_ms: float, memory_mb: float = 0.0, engine: str = "onnx") -> Capacity:
    """Latency `fixed + batch * per_row / sqrt(share)`: small shares are the more efficient ones."""
    points = [
        Point(share, batch, 1, batch / latency_ms * 1000, latency_ms, memory_mb)
        for share, batch in product(SHARES, (1, 2, 4, 8))
        for latency_ms in [fixed_ms + batch * per_row_ms / (share / 100) ** 0.5]
    ]
    return Capacity(model, engine, tuple(points))


def devices(count: int, memory_mb: float = 0.0) -> tuple[Device, ...]:
    return tuple(Device(f"gpu{at}", "test", memory_mb) for at in range(count))


def problem(
    *wanted: tuple[float, float, float, float], count: int = 2, max_partitions: int = 0, memory_mb: float = 0.0
) -> Problem:
    """Models as (rate, SLO, ms per row, fixed ms); with `memory_mb` each takes 300."""
    each_mb = 300.0 if memory_mb else 0.0
    return Problem(
        tuple(Demand(f"m{at}", rate, slo) for at, (rate, slo, _, _) in enumerate(wanted)),
        tuple(capacity(f"m{at}", per_row, fixed, each_mb) for at, (_, _, per_row, fixed) in enumerate(wanted)),
        devices(count, memory_mb),
        max_partitions,
        budget_s=2.0,
    )


def planned(policy: str, case: Problem) -> Plan | None:
    """The plan, checked; None where the policy refuses."""
    try:
        plan = POLICIES[policy](case)
    except NoPlan:
        return None
    assert check(plan, case.capacities) == []
    return plan


CASES = st.builds(
    lambda wanted, count, most, memory: problem(*wanted, count=count, max_partitions=most, memory_mb=memory),
    st.lists(
        st.tuples(st.floats(1, 1500), st.floats(4, 60), st.floats(0.2, 4), st.floats(0.1, 4)), min_size=1, max_size=3
    ),
    st.integers(1, 2),
    st.sampled_from((0, 2, 3)),
    st.sampled_from((0.0, 800.0)),
)


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_every_plan_holds_and_every_refusal_of_best_is_true(case: Problem) -> None:
    plans = {policy: planned(policy, case) for policy in (*QUICK, "exhaustive")}
    best, yardstick = plans["best"], plans["exhaustive"]
    if yardstick is not None:  # whose models share one partition each, and no two
        assert best is not None
        assert len(best.used_devices) <= len(yardstick.used_devices)
    for policy in QUICK:
        other = plans[policy]
        assert other is None or (best is not None and len(best.used_devices) <= len(other.used_devices))


@settings(max_examples=25, deadline=None)
@given(CASES, st.floats(1.0, 3.0))
def test_more_devices_slower_goals_and_lower_rates_never_break_a_plan(case: Problem, factor: float) -> None:
    if planned("exhaustive", case) is None:
        return
    lower = tuple(replace(demand, rate_per_s=demand.rate_per_s / factor) for demand in case.demands)
    later = tuple(replace(demand, slo_ms=demand.slo_ms * factor) for demand in case.demands)
    for easier in (
        replace(case, devices=devices(len(case.devices) + 1, case.devices[0].memory_mb)),
        replace(case, demands=lower),
        replace(case, demands=later),
    ):
        assert planned("best", easier) is not None


def test_one_model_that_fills_a_device_exactly_needs_one() -> None:
    plan = planned("best", problem((1000 / 5.0, 10.0, 4.0, 1.0)))  # batch 1 takes 5 ms on the whole device
    assert plan is not None
    assert len(plan.used_devices) == 1


def test_two_small_models_share_a_device_in_space() -> None:
    plan = planned("gpulet", problem((50, 40, 2, 0.5), (50, 40, 2, 0.5), count=1))
    assert plan is not None
    assert [placement.share_pct for placement in plan.placements] == [25.0, 25.0]


def test_models_that_need_the_whole_device_for_their_slo_share_it_in_time() -> None:
    case = problem((20, 24, 4, 1), (20, 24, 4, 1), (20, 24, 4, 1), count=1)
    case = replace(
        case,
        capacities=tuple(replace(c, points=tuple(p for p in c.points if p.share_pct == 100)) for c in case.capacities),
    )
    for policy in ("gpulet", "temporal", "best", "exhaustive"):
        plan = planned(policy, case)
        assert plan is not None
        (placement,) = plan.placements
        assert placement.cycle_ms == pytest.approx(15.0)
    assert planned("static", case) is None


def test_the_engine_with_more_throughput_is_chosen() -> None:
    case = problem((100, 50, 2, 1), count=1)
    slow = capacity("m0", 8, 2, engine="torchscript")
    plan = planned("best", replace(case, capacities=(slow, *case.capacities)))
    assert plan is not None
    assert {tenant.engine for placement in plan.placements for tenant in placement.tenants} == {"onnx"}


def test_several_processes_are_used_where_they_carry_more() -> None:
    case = problem((100, 50, 2, 1), count=1)
    points = (Point(100, 1, 1, 100, 10), Point(100, 1, 2, 180, 11))
    case = replace(case, demands=(Demand("m0", 150, 50),), capacities=(Capacity("m0", "onnx", points),))
    plan = planned("best", case)
    assert plan is not None
    assert plan.placements[0].tenants[0].processes == 2


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_an_impossible_slo_is_told_with_the_best_there_is(arrivals: str) -> None:
    case = replace(problem((10, 3, 4, 1), (10, 60, 1, 1)), arrivals=arrivals)
    with pytest.raises(NoPlan, match=r"m0: at 3 ms no share is fast enough; best is 10 ms at 100 %") as error:
        make_plan(case, "gpulet")
    (shortfall,) = error.value.shortfalls
    assert shortfall.nearest is not None
    assert shortfall.nearest.rate_per_s == 10
    assert 10 <= shortfall.nearest.slo_ms < 40
    assert planned("gpulet", replace(case, demands=(shortfall.nearest, case.demands[1]))) is not None


@pytest.mark.parametrize("policy", ["gpulet", "temporal", "best"])
def test_too_high_rates_are_told_with_rates_that_are_possible(policy: str) -> None:
    case = problem((5000, 30, 2, 1), (5000, 30, 2, 1))
    with pytest.raises(NoPlan, match="devices") as error:
        make_plan(case, policy)
    nearest = {shortfall.model: shortfall.nearest for shortfall in error.value.shortfalls}
    possible = tuple(nearest.get(demand.model) or replace(demand, rate_per_s=1) for demand in case.demands)
    assert planned(policy, replace(case, demands=possible)) is not None


def test_a_model_without_a_profile_is_told() -> None:
    case = problem((10, 30, 2, 1))
    with pytest.raises(
        NoPlan, match=r"^x: there is no profile of it .* `efserve profile --grid --model x` makes one there$"
    ):
        make_plan(replace(case, demands=(Demand("x", 1, 1),)), "best")


def test_headroom_is_room_for_more() -> None:
    case = problem((300, 30, 2, 1), count=2)
    plan = planned("best", replace(case, headroom_pct=50))
    assert plan is not None
    carried = sum(tenant.capacity_per_s for placement in plan.placements for tenant in placement.tenants)
    assert carried >= 450


def test_goodput_uses_all_devices_and_spread_fills_them_evenly() -> None:
    case = problem((100, 40, 2, 0.5), (100, 40, 2, 0.5), count=2)
    most = make_plan(replace(case, objective="goodput"), "gpulet")
    assert check(most, case.capacities) == []
    assert most.headroom_pct / 100 + 1 == pytest.approx(most_factor(case, "gpulet"))
    even = make_plan(replace(case, objective="spread"), "gpulet")
    assert check(even, case.capacities) == []
    assert len(even.used_devices) == 2


def test_best_searches_on_for_goodput_and_its_plan_holds() -> None:
    case = problem((70, 30, 2.5, 1), (110, 50, 1, 3), (40, 25, 0.6, 2), (90, 55, 3, 0.5), count=2)
    case = replace(case, objective="goodput", budget_s=60.0)  # which no machine needs: what the clock ends varies
    factor, shelves = most(case, "best")
    assert factor > 1.01 * most_factor(case, "best")
    assert most(case, "best")[0] == pytest.approx(factor)
    plan = make_plan(case, "best")
    assert check(plan, case.capacities) == []
    assert plan.headroom_pct / 100 + 1 == pytest.approx(factor)
    assert len(shelves) == 2


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_plans_for_goodput_hold(case: Problem) -> None:
    try:
        plan = make_plan(replace(case, objective="goodput", budget_s=0.3), "best")
    except NoPlan:
        return
    assert check(plan, case.capacities) == []


def fine_problem(models: int, count: int) -> Problem:
    """Models with shares in steps of 2 %, as profiles of a processor with 50 cores have them."""
    shares = [2.0 * step for step in range(1, 51)]
    capacities = tuple(
        Capacity(
            f"m{at}",
            "onnx",
            tuple(
                Point(share, batch, 1, batch / ms * 1000, ms)
                for share in shares
                for batch in (1, 4, 16)
                for ms in [1 + batch * (1 + at % 3) / (share / 100) ** 0.8]
            ),
        )
        for at in range(models)
    )
    demands = tuple(Demand(f"m{at}", 120 + 40 * (at % 5), 80 + at) for at in range(models))
    return Problem(demands, capacities, devices(count), budget_s=2.0)


@pytest.mark.parametrize(("models", "count"), [(3, 2), (12, 4), (12, 6)])
def test_many_shares_and_models_keep_the_time(models: int, count: int) -> None:
    case = fine_problem(models, count)
    began_s = time.monotonic()
    plan = planned("best", case)
    assert time.monotonic() - began_s < 20
    assert plan is not None or count == 4
    assert planned("gpulet", case) is None or plan is not None


def test_refusals_of_many_models_stay_readable() -> None:
    case = problem(*[(900, 30, 2, 1)] * 9, count=1)
    with pytest.raises(NoPlan, match=r"m0, m1, m2, m3, m4 and 4 more: the rates fill 9\.11 devices"):
        POLICIES["gpulet"](case)


@pytest.mark.parametrize("policy", ["best", "gpulet", "temporal"])
def test_where_one_model_finds_no_room_the_nearest_demands_of_all_have_a_plan_together(policy: str) -> None:
    case = problem((300, 30, 2, 1), (300, 30, 2, 1), (300, 30, 2, 1), count=1)
    with pytest.raises(NoPlan) as error:
        make_plan(case, policy)
    nearest = {shortfall.model: shortfall.nearest for shortfall in error.value.shortfalls}
    demands = tuple(nearest.get(demand.model) or demand for demand in case.demands)
    assert all(demand.rate_per_s > 0 for demand in demands)
    assert planned(policy, replace(case, demands=demands)) is not None


@pytest.mark.parametrize("policy", ["best", "gpulet"])
def test_rates_far_beyond_all_devices_have_a_nearest_demand_too(policy: str) -> None:
    case = problem((5e7, 30, 2, 1), (20, 30, 2, 1), count=1)
    with pytest.raises(NoPlan) as error:
        make_plan(case, policy)
    nearest = {shortfall.model: shortfall.nearest for shortfall in error.value.shortfalls}
    demands = tuple(nearest.get(demand.model) or demand for demand in case.demands)
    assert planned(policy, replace(case, demands=demands)) is not None


def test_a_model_whose_large_partitions_are_wasteful_is_planned() -> None:
    shares = [1.0 * step for step in range(1, 101)]
    points = tuple(Point(share, 1, 1, 100 + share, 5) for share in shares)  # the smallest are by far the best
    case = Problem((Demand("m0", 9000, 20),), (Capacity("m0", "onnx", points),), devices(1), budget_s=1.0)
    both = (*case.demands, Demand("m1", 3000, 20))
    shared = replace(case, demands=both, capacities=(*case.capacities, replace(case.capacities[0], model="m1")))
    plan = planned("best", replace(shared, devices=devices(2)))
    assert plan is not None
    assert len(plan.used_devices) == 2


def test_what_is_left_over_is_split_into_the_gaps_of_devices() -> None:
    shares = ((20.0, 20.0), (40.0, 41.0), (60.0, 80.0))  # percent, requests/s: gaps of 40 % stay beside the knee
    points = tuple(Point(share, 1, 1, rate, 5) for share, rate in shares)
    case = Problem((Demand("m0", 240, 20),), (Capacity("m0", "onnx", points),), devices(2))
    plan = planned("gpulet", case)
    assert plan is not None
    assert sorted(placement.share_pct for placement in plan.placements) == [40, 40, 60, 60]
    wide = planned("gpulet", replace(case, devices=devices(5)))
    assert wide is not None
    assert len(wide.used_devices) == 2


def test_exhaustive_says_where_a_case_is_too_large() -> None:
    shares = [1.0 * step for step in range(1, 101)]
    points = tuple(Point(share, 1, 1, share, 5) for share in shares)
    for rate, count in ((95.0, 1), (9000.0, 100)):
        case = Problem((Demand("m0", rate, 20),), (Capacity("m0", "onnx", points),), devices(count), budget_s=1.0)
        with pytest.raises(UsageError, match="too many to try everything: use policy best"):
            POLICIES["exhaustive"](case)


def test_temporal_shares_devices_in_time_also_where_no_share_of_100_was_measured() -> None:
    case = problem((20, 80, 2, 1), (20, 80, 2, 1), count=1)
    half = tuple(replace(c, points=tuple(p for p in c.points if p.share_pct == 50)) for c in case.capacities)
    plan = planned("temporal", replace(case, capacities=half))
    assert plan is not None
    assert [len(placement.tenants) for placement in plan.placements] == [2]


@pytest.mark.parametrize("policy", [*QUICK, "exhaustive"])
def test_a_model_that_is_hardly_asked_for_has_its_place(policy: str) -> None:
    plan = planned(policy, problem((1e-8, 30, 2, 1), (20, 30, 2, 1)))
    assert plan is not None
    assert {tenant.model for placement in plan.placements for tenant in placement.tenants} == {"m0", "m1"}


@pytest.mark.parametrize("policy", ["best", "gpulet"])
def test_models_that_cannot_run_beside_one_another_at_any_rate_are_told_longer_slos(policy: str) -> None:
    points = tuple(Point(100, batch, 1, batch / ms * 1000, ms) for batch, ms in ((1, 10.0), (2, 11.0)))
    models = ("a", "b", "c")
    demands, capacities = tuple(Demand(m, 5, 21) for m in models), tuple(Capacity(m, "onnx", points) for m in models)
    case = Problem(demands, capacities, devices(1), budget_s=1.0)
    with pytest.raises(NoPlan, match="1 device") as error:
        make_plan(case, policy)
    nearest = tuple(shortfall.nearest for shortfall in error.value.shortfalls)
    assert {demand.slo_ms for demand in nearest if demand} == {42}
    assert planned(policy, replace(case, demands=tuple(demand for demand in nearest if demand))) is not None
    assert len(nearest) == 3


@pytest.mark.parametrize("policy", ["best", "gpulet", "temporal"])
@pytest.mark.parametrize("rate", [5.0, 400.0])
def test_where_memory_keeps_models_apart_it_is_told_which_to_leave_out(policy: str, rate: float) -> None:
    case = problem(*[(rate, 30.0, 2.0, 1.0)] * 5, count=2, memory_mb=800)  # two of 300 MB fit in 90 % of 800
    with pytest.raises(NoPlan, match=r"m4: there is no room for it beside m0, m1, m2, m3 on 2 devices") as error:
        make_plan(case, policy)
    assert "leave it out; 3 devices hold all of them at some rate" in str(error.value)
    nearest = {shortfall.model: shortfall.nearest for shortfall in error.value.shortfalls}
    assert nearest.pop("m4") is None
    demands = tuple(nearest.get(demand.model) or demand for demand in case.demands[:4])
    assert planned(policy, replace(case, demands=demands)) is not None
    assert planned(policy, replace(case, demands=case.demands[:4])) is None or not nearest
