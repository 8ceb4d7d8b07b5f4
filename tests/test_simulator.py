"""The simulator against what queueing theory and plain arithmetic say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.arrivals import Trace
from efserve.cli import main
from efserve.errors import ConfigError, UsageError
from efserve.planning.check import check
from efserve.planning.interference import Interference, Load, Pair, fit
from efserve.planning.packing import assemble
from efserve.planning.plan import Capacity, Demand, Device, Placement, Plan, Point, Problem, Tenant, plan_json
from efserve.planning.policies import POLICIES, most
from efserve.planning.recipes import growths, safe_load
from efserve.simulator.events import Arrival, Outcomes, simulate
from efserve.simulator.job import SimulateConfig, highest_factor, planned_arrivals, traced_arrivals
from efserve.simulator.partitions import spread


def one(batch: int, latency_ms: float, rate: float, slo_ms: float, processes: int = 1) -> tuple[Plan, list[Capacity]]:
    """One model alone on a device; every batch takes as long."""
    throughput = batch * processes / latency_ms * 1000
    tenant = Tenant("m", "onnx", batch, processes, rate, throughput, latency_ms, 2 * latency_ms)
    plan = Plan(
        "test", (Device("d", "x"),), (Demand("m", rate, slo_ms),), (Placement("d", 100, latency_ms, (tenant,)),)
    )
    return plan, [Capacity("m", "onnx", (Point(100, batch, processes, throughput, latency_ms),))]


def arriving(*at_ms: float) -> Arrival:
    return Arrival([int(ms * 1e6) for ms in at_ms], [0] * len(at_ms))


def test_a_request_waits_for_a_running_batch_then_for_its_own() -> None:
    plan, capacities = one(4, 10, 100, 20)
    outcome = simulate(plan, capacities, arriving(0, 1, 2, 3, 4, 5), late="serve")
    (model,) = outcome.models
    assert model.requests == 6
    assert model.max_ms == pytest.approx(25)  # the last of five that wait finds no room in the next batch of four
    assert model.within_slo == 5
    assert model.max_queued == 5
    assert outcome.duration_s == pytest.approx(0.030)
    assert outcome.partitions[0].utilization == pytest.approx(1)
    assert outcome.partitions[0].batches == 3


@pytest.mark.parametrize("mean_ms", [8.0, 10.4, 12.0])
def test_drawn_latencies_have_the_measured_percentiles_and_mean(mean_ms: float) -> None:
    point = Point(100, 4, 1, 400, latency_ms=16, mean_ms=mean_ms, std_ms=3, p50_ms=10, p90_ms=12)
    drawn = spread(point)
    assert drawn.mean() == pytest.approx(mean_ms)
    if mean_ms > 10:
        assert np.percentile(drawn, (50, 90)).tolist() == pytest.approx([10, 12], rel=0.01)
        assert np.percentile(drawn, 98.9) == pytest.approx(16, rel=0.03)
    normal = spread(Point(100, 4, 1, 400, latency_ms=16, mean_ms=10, std_ms=1))
    assert normal.mean() == pytest.approx(10)
    assert normal.std() == pytest.approx(1, rel=0.02)


def test_the_way_through_the_gateway_is_added() -> None:
    plan, capacities = one(4, 10, 100, 20)
    (model,) = simulate(plan, capacities, arriving(0, 100), gateway_ms=3.0).models
    assert model.p50_ms == pytest.approx(13)
    assert model.within_slo == 2


def test_what_would_be_late_is_refused_so_that_the_rest_is_not() -> None:
    plan, capacities = one(4, 10, 400, 40)
    arrivals = planned_arrivals(plan, SimulateConfig((), requests=20_000), 2.0)
    (dropped,) = simulate(plan, capacities, arrivals).models
    (served,) = simulate(plan, capacities, arrivals, late="serve").models
    assert served.dropped == 0
    assert dropped.within_slo == dropped.requests - dropped.dropped
    assert 0.49 < dropped.within_slo / dropped.requests <= 0.51  # as much as the device carries
    assert served.within_slo < 0.05 * served.requests


def test_constant_arrivals_within_the_worst_case_never_miss() -> None:
    plan, capacities = one(8, 10, 800, 20.001)
    config = SimulateConfig((), requests=5000, arrivals="constant")
    outcome = simulate(plan, capacities, planned_arrivals(plan, config, 1.0))
    assert outcome.models[0].within_slo == outcome.models[0].requests == 5000


def test_a_server_without_batches_waits_as_theory_says() -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) of a service time; here the median of the sojourn is compared."""
    plan, capacities = one(1, 10, 50, 1000)
    config = SimulateConfig((), requests=100_000, seed=3)
    times = np.array(planned_arrivals(plan, config, 1.0).time_ns) / 1e6
    free = late = 0.0
    expected = []
    for time in times:
        free = max(free, time) + 10
        expected.append(free - time)
        late = max(late, free - time)
    outcome = simulate(plan, capacities, planned_arrivals(plan, config, 1.0))
    assert np.mean(expected) == pytest.approx(15, rel=0.03)
    assert outcome.models[0].p50_ms == pytest.approx(np.median(expected))
    assert outcome.models[0].max_ms == pytest.approx(late)


def test_processes_run_side_by_side() -> None:
    plan, capacities = one(1, 10, 100, 15, processes=2)
    assert simulate(plan, capacities, arriving(0, 1, 2), late="serve").models[0].max_ms == pytest.approx(18)


def test_models_that_share_a_partition_take_turns() -> None:
    plan, capacities = one(1, 10, 10, 100)
    tenants = tuple(replace(plan.placements[0].tenants[0], model=model) for model in "mn")
    plan = replace(
        plan, demands=(Demand("m", 10, 100), Demand("n", 10, 100)), placements=(Placement("d", 100, 20, tenants),)
    )
    both = [capacities[0], replace(capacities[0], model="n")]
    outcome = simulate(plan, both, Arrival([0, 1, 2, 3], [0, 0, 0, 1]))
    m, n = outcome.models
    assert (m.requests, n.requests) == (3, 1)
    assert n.max_ms == pytest.approx(20, abs=0.01)  # it runs after one batch of the other, not after three
    assert m.max_ms == pytest.approx(40, abs=0.01)


def beside(cost: float) -> tuple[Plan, list[Capacity], Interference]:
    """Models m and n on a half each; a batch of 10 ms takes `cost` longer for as long as the other runs."""
    plan, (capacity,) = one(1, 10, 10, 1000)
    tenants = [replace(plan.placements[0].tenants[0], model=model) for model in "mn"]
    placements = tuple(Placement("d", 50, 10, (tenant,)) for tenant in tenants)
    plan = replace(plan, demands=(Demand("m", 10, 1000), Demand("n", 10, 1000)), placements=placements)
    points = (replace(capacity.points[0], share_pct=50),)
    both = [Capacity(model, "onnx", points) for model in "mn"]
    pairs = [Pair(me, 50, you, 50, 1 + cost) for me, you in ("mn", "nm")]
    return plan, both, fit(pairs, {model: Load(0.5, 0.5) for model in "mn"})


def test_a_neighbour_slows_a_batch_down_only_while_it_runs() -> None:
    plan, capacities, interference = beside(0.5)
    arrival = Arrival([0, 4_000_000, 100_000_000], [0, 1, 0])
    m, n = simulate(plan, capacities, arrival, interference=interference).models
    assert m.max_ms == pytest.approx(4 + 6 * 1.5)  # 4 ms alone, what is left beside the other
    assert n.max_ms == pytest.approx(9 + (10 - 9 / 1.5))  # beside the first until that ends at 13 ms, then alone
    assert m.p50_ms == pytest.approx((13 + 10) / 2)  # the second is alone
    alone = simulate(plan, capacities, arrival).models
    assert [model.max_ms for model in alone] == pytest.approx([10, 10])


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=40), st.floats(0.01, 1.5))
def test_neighbours_cost_nothing_but_time(arrivals: list[tuple[int, bool]], cost: float) -> None:
    plan, capacities, interference = beside(cost)
    arrivals.sort()
    arrival = Arrival([ms * 1_000_000 for ms, _ in arrivals], [int(is_n) for _, is_n in arrivals])
    alone = simulate(plan, capacities, arrival, late="serve")
    outcome = simulate(plan, capacities, arrival, late="serve", interference=interference)
    for model, before in zip(outcome.models, alone.models, strict=True):
        assert model.requests == before.requests
        assert before.max_ms <= model.max_ms + 0.001
    for place, before_place in zip(outcome.partitions, alone.partitions, strict=True):
        busy_s, before_s = place.utilization * outcome.duration_s, before_place.utilization * alone.duration_s
        assert place.batches == before_place.batches
        assert before_s <= busy_s + 1e-6 <= before_s * (1 + cost) + 2e-6


def test_requests_spread_over_partitions_by_what_they_carry() -> None:
    points = (Point(25, 1, 1, 25, 40), Point(75, 1, 1, 75, 13))
    tenants = [Tenant("m", "onnx", 1, 1, 40, p.throughput_per_s, p.latency_ms, 0) for p in points]
    placements = tuple(Placement("d", p.share_pct, 1, (t,)) for p, t in zip(points, tenants, strict=True))
    plan = Plan("test", (Device("d", "x"),), (Demand("m", 80, 100),), placements)
    config = SimulateConfig((), requests=4000)
    outcome = simulate(plan, [Capacity("m", "onnx", points)], planned_arrivals(plan, config, 1.0))
    slow, fast = outcome.partitions
    assert 2 < fast.batches / slow.batches < 6


@pytest.mark.parametrize(("batch", "rounds"), [(1, 3.0), (4, 2.0), (4, 2.2), (16, 2.5), (64, 2.0), (64, 3.0), (8, 6.0)])
def test_a_safe_load_is_safe_and_not_timid(batch: int, rounds: float) -> None:
    load = safe_load(batch, rounds)
    plan, capacities = one(batch, 10, load * batch * 100, rounds * 10)
    config = SimulateConfig((), requests=60_000)
    outcome = simulate(plan, capacities, planned_arrivals(plan, config, 1.0))
    assert outcome.within_slo >= 0.985
    assert highest_factor(plan, capacities, replace(config, requests=20_000)) < 1.9


@pytest.mark.parametrize(
    ("batch", "rounds", "growth"), [(2, 2.0, 0.95), (4, 2.0, 0.5), (4, 2.5, 0.95), (16, 2.0, 0.8), (64, 2.2, 0.9)]
)
def test_where_small_batches_are_quick_more_load_is_safe(batch: int, rounds: float, growth: float) -> None:
    load = safe_load(batch, rounds, growth)
    assert load > 1.03 * safe_load(batch, rounds)
    plan, capacities = one(batch, 10, load * batch * 100, rounds * 10)
    first = Point(100, 1, 1, 1, 10 * (1 - growth) + 10 * growth / batch)
    capacities = [Capacity("m", "onnx", (first, *capacities[0].points))]
    problem = Problem(plan.demands, tuple(capacities), plan.devices, arrivals="poisson")
    assert growths(problem, "m")["onnx", capacities[0].points[1]] == pytest.approx(growth)
    outcome = simulate(plan, capacities, planned_arrivals(plan, SimulateConfig((), requests=30_000), 1.0))
    assert outcome.holds


def test_a_step_in_a_table_is_no_growth() -> None:
    points = tuple(Point(100, batch, 1, batch * 100, ms) for batch, ms in ((1, 2.0), (15, 10.0), (16, 10.0)))
    problem = Problem((Demand("m", 1, 1),), (Capacity("m", "onnx", points),), (Device("d", "x"),))
    assert growths(problem, "m")["onnx", points[2]] == 0
    assert growths(problem, "m")["onnx", points[0]] == 0


def test_the_same_seed_gives_the_same_result_and_spread_is_drawn() -> None:
    plan, capacities = one(8, 10, 400, 40)
    spread = [Capacity("m", "onnx", (replace(capacities[0].points[0], mean_ms=8.0, std_ms=1.0),))]
    arrivals = planned_arrivals(plan, SimulateConfig((), requests=5000), 1.0)
    assert simulate(plan, spread, arrivals, 1) == simulate(plan, spread, arrivals, 1)
    assert simulate(plan, spread, arrivals, 1) != simulate(plan, spread, arrivals, 2)


def test_plans_for_poisson_arrivals_hold_them() -> None:
    points = tuple(
        Point(share, batch, 1, batch / ms * 1000, ms)
        for share in (25, 50, 100)
        for batch in (1, 2, 4, 8, 16, 32)
        for ms in [2 + batch * 0.8 / (share / 100) ** 0.7]
    )
    capacities = tuple(Capacity(model, "onnx", points) for model in "abc")
    demands = (Demand("a", 400, 40), Demand("b", 150, 60), Demand("c", 900, 120))
    problem = Problem(demands, capacities, tuple(Device(f"d{at}", "x") for at in range(8)), arrivals="poisson")
    for policy in ("best", "gpulet", "temporal"):
        plan = POLICIES[policy](problem)
        outcome = simulate(plan, capacities, planned_arrivals(plan, SimulateConfig(()), 1.0))
        assert outcome.holds, outcome.models


TABLES = st.lists(st.tuples(*[st.floats(1, 10)] * 4), min_size=1, max_size=2)  # ms of batches of 1, 2, 4, 8


@settings(max_examples=30, deadline=None)
@given(TABLES, st.floats(2, 4), st.sampled_from(("gpulet", "temporal", "best")))
def test_plans_hold_where_smaller_batches_may_take_longer(
    tables: list[tuple[float, ...]], rounds: float, policy: str
) -> None:
    capacities = tuple(
        Capacity(f"m{at}", "onnx", tuple(Point(100, 2**n, 1, 2**n / ms * 1000, ms) for n, ms in enumerate(batches_ms)))
        for at, batches_ms in enumerate(tables)
    )
    demands = tuple(Demand(f"m{at}", 50, rounds * batches_ms[-1]) for at, batches_ms in enumerate(tables))
    case = Problem(demands, capacities, tuple(Device(f"d{at}", "x") for at in range(2)), budget_s=0.2)
    factor, shelves = most(case, policy)
    if factor:
        highest = tuple(replace(demand, rate_per_s=factor * demand.rate_per_s) for demand in demands)
        plan = assemble(replace(case, demands=highest), policy, shelves)
        assert check(plan, capacities) == []
        config = SimulateConfig((), requests=1000, arrivals="constant")
        assert simulate(plan, capacities, planned_arrivals(plan, config, 1.0)).worst_within_slo == 1


def test_a_trace_names_models_of_the_plan() -> None:
    plan, _ = one(1, 10, 10, 100)
    assert traced_arrivals(plan, Trace(np.array([0.0, 1.0]), ("", "m")), 2.0) == Arrival([0, 500_000_000], [0, 0])
    with pytest.raises(UsageError, match="names 'x'"):
        traced_arrivals(plan, Trace(np.array([0.0]), ("x",)), 1.0)


def test_profiles_without_the_planned_batch_are_told() -> None:
    plan, capacities = one(4, 10, 100, 20)
    with pytest.raises(UsageError, match="the profiles that the plan was made from"):
        simulate(plan, [replace(capacities[0], points=())], arriving(0))


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A plan for the shipped profile."""
    path = tmp_path / "plan.json"
    arguments = ["--rate", "digits=2000", "--slo", "digits=5", "--profiles", str(SHIPPED), "-o", str(path)]
    assert CliRunner().invoke(main, ["plan", *arguments]).exit_code == 0
    return path


SHIPPED = Path(__file__).parents[1] / "profiled_data"


def test_the_command_tells_what_requests_met(plan_file: Path) -> None:
    done = CliRunner().invoke(main, ["simulate", str(plan_file), "--profiles", str(SHIPPED), "--requests", "5000"])
    assert done.exit_code == 0, done.output
    assert "The plan holds" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_command_reads_what_neighbours_cost(tmp_path: Path) -> None:
    tenant = Tenant("digits", "onnx", 32, 1, 100_000, 200_000, 0.2, 0.4)
    halves = (Placement("d", 50, 0.2, (tenant,)), Placement("d", 50, 0.2, (tenant,)))
    device, demand = Device("d", "cpu-amd-epyc-2c"), Demand("digits", 200_000, 1000)
    path, pairs = tmp_path / "plan.json", tmp_path / "pairs.json"
    path.write_bytes(plan_json(Plan("test", (device,), (demand,), halves)))
    pair = {"me": "digits", "my_pct": 50, "you": "digits", "your_pct": 50, "slowdown": 1.5}
    pairs.write_text(json.dumps({"loads": {"digits": {"l2": 0, "dram": 0}}, "pairs": [pair]}))
    arguments = ["simulate", str(path), "--profiles", str(SHIPPED), "--requests", "2000", "--json"]
    p50_ms = []
    for options in ([], ["--interference", str(pairs)]):
        done = CliRunner().invoke(main, [*arguments, *options])
        assert done.exit_code == 0, done.output
        p50_ms.append(json.loads(done.stdout)[0]["models"][0]["p50_ms"])
    assert p50_ms[1] > 1.2 * p50_ms[0]
    refused = CliRunner().invoke(main, [*arguments, "--interference", str(pairs), "--no-interference"])
    assert refused.exit_code == 2
    assert "contradict" in refused.stderr


def test_the_command_sweeps_and_prints_json(plan_file: Path, tmp_path: Path) -> None:
    arguments = ["simulate", str(plan_file), str(plan_file), "--profiles", str(SHIPPED), "--requests", "2000"]
    done = CliRunner().invoke(main, [*arguments, "--sweep", "--json"])
    first, second = json.loads(done.stdout)
    assert first == second
    assert first["factor"] > 1
    trace = tmp_path / "trace.csv"
    trace.write_text("0,digits\n0.5,digits\n")
    done = CliRunner().invoke(main, [*arguments, "--trace", str(trace), "--json"])
    assert [model["requests"] for result in json.loads(done.stdout) for model in result["models"]] == [2, 2]
    assert CliRunner().invoke(main, [*arguments, "--trace", str(trace), "--sweep"]).exit_code == 2


def test_a_sweep_compares_policies_in_a_table_and_a_picture(plan_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.png"
    arguments = ["simulate", str(plan_file), "--profiles", str(SHIPPED), "--requests", "2000", "--sweep"]
    rivals = ["--policy", "gpulet", "--policy", "temporal", "--policy", "best", "--budget", "1"]
    done = CliRunner().invoke(main, [*arguments, *rivals, "--plot", str(picture), "--json"])
    assert done.exit_code == 0, done.output
    limits = json.loads(done.stdout)
    assert [limit["policy"] for limit in limits] == ["best", "gpulet", "temporal", "best"]
    assert all(limit["tried"] == sorted(limit["tried"], key=lambda t: t["rate_per_s"]) for limit in limits)
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(main, ["simulate", str(plan_file), "--policy", "best"])
    assert refused.exit_code == 2
    assert "give --sweep too" in refused.stderr


def test_an_empty_plan_is_refused(tmp_path: Path) -> None:
    plan, _ = one(1, 10, 10, 100)
    path = tmp_path / "plan.json"
    path.write_bytes(plan_json(replace(plan, placements=())))
    assert CliRunner().invoke(main, ["simulate", str(path)]).exit_code == 2


def test_a_plan_without_a_place_for_a_model_is_told() -> None:
    plan, capacities = one(1, 10, 10, 100)
    for demands, why in (((*plan.demands, Demand("n", 1, 9)), "no placement for 'n'"), ((), "no demand for 'm'")):
        with pytest.raises(ConfigError, match=why):
            simulate(replace(plan, demands=demands), capacities, arriving(0))


def test_no_requests_are_no_failure() -> None:
    plan, capacities = one(1, 10, 10, 100)
    outcome = simulate(plan, capacities, Arrival([], []))
    assert isinstance(outcome, Outcomes)
    assert outcome.within_slo == 1
