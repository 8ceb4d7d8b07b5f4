"""From options to plans: profiles on disk, workload files, interference, and the command itself."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from efserve.cli import main
from efserve.errors import ConfigError, UsageError
from efserve.planning.check import check
from efserve.planning.interference import Interference, Load, Pair, fit, slowed
from efserve.planning.job import run
from efserve.planning.options import PlanConfig
from efserve.planning.plan import Capacity, Demand, Device, Point, Problem
from efserve.planning.policies import POLICIES
from efserve.planning.tables import read_capacities
from efserve.planning.workload import Application, merged, read_workload, split
from efserve.profiles import COLUMNS, row_line
from test_profiles import FACTS, ROW

DEVICE = "test-gpu"


def write_profile(root: Path, model: str, per_row_ms: float) -> None:
    """A profile with shares of 50 and 100 % and batches up to 8."""
    folder = root / DEVICE
    folder.mkdir(parents=True, exist_ok=True)
    lines = [(",".join(COLUMNS) + "\n").encode()]
    for share, cores in ((50.0, 1), (100.0, 2)):
        for batch in (1, 2, 4, 8):
            ms = (1 + batch * per_row_ms) * 50 / share
            row = replace(ROW, share_pct=share, cores=cores, batch=batch, peak_memory_mb=100.0, utilization_pct=50.0)
            row = replace(row, mean_ms=ms, std_ms=0.0, p50_ms=ms, p90_ms=ms, p99_ms=ms, roundtrip_ms=ms + 0.1)
            lines.append(row_line(replace(row, throughput_per_s=batch / ms * 1000)))
    (folder / f"{model}.onnx.csv").write_bytes(b"".join(lines))
    facts = replace(FACTS, model=model, device=DEVICE)
    (folder / f"{model}.onnx.json").write_bytes(msgspec.json.encode(facts))


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    root = tmp_path / "profiles"
    write_profile(root, "a", 1.0)
    write_profile(root, "b", 3.0)
    return root


def test_the_way_to_the_worker_is_the_same_for_the_median_and_the_rare_slow_batch(tmp_path: Path) -> None:
    write_profile(tmp_path, "m", 1.0)
    path = tmp_path / DEVICE / "m.onnx.csv"
    skewed = replace(ROW, mean_ms=5.0, p50_ms=4.0, p90_ms=8.0, p99_ms=9.0, roundtrip_ms=5.25)
    path.write_bytes((",".join(COLUMNS) + "\n").encode() + row_line(skewed))
    ((point,),) = [capacity.points for capacity in read_capacities(tmp_path, DEVICE)]
    assert (point.mean_ms, point.p50_ms, point.p90_ms, point.latency_ms) == (5.25, 4.25, 8.25, 9.25)


def test_a_plan_is_made_from_profiles_written_and_checked(profiles: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    made = run(PlanConfig((("a", 300.0), ("b", 50.0)), (("a", 40.0), ("b", 60.0)), profiles=profiles, output=file))
    assert made.wrong == ()
    assert len(made.plan.used_devices) == 1
    assert run(PlanConfig(check=file, profiles=profiles)).plan == made.plan
    broken = file.read_text().replace('"slo_ms": 40.0', '"slo_ms": 1.0')
    file.write_text(broken)
    assert run(PlanConfig(check=file, profiles=profiles)).wrong


def test_the_way_to_the_worker_counts_as_latency(profiles: Path) -> None:
    made = run(PlanConfig((("a", 300),), (("a", 40),), profiles=profiles))
    assert all(round(tenant.latency_ms % 0.5, 6) == 0.1 for p in made.plan.placements for tenant in p.tenants)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PlanConfig(), "profiled models: a, b"),
        (PlanConfig((("a", 1),)), "a: give both"),
        (PlanConfig((("a", 1),), (("b", 1),)), "a, b: give both"),
        (PlanConfig(devices=(1, "none")), "no profiles of 'none'"),
        (PlanConfig(workload=Path("no-such-file")), "cannot read workload"),
    ],
)
def test_what_is_missing_is_told(profiles: Path, config: PlanConfig, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        run(replace(config, profiles=profiles))


def test_the_command_prints_tables_bars_and_what_breaks_first(profiles: Path) -> None:
    arguments = ["plan", "--rate", "a=900", "--slo", "a=40", "--rate", "b=50", "--slo", "b=60", "--devices", "3"]
    done = CliRunner().invoke(main, [*arguments, "--profiles", str(profiles)])
    assert done.exit_code == 0
    assert "breaks first" in done.stdout
    assert f"{DEVICE}-0" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("columns", [50, 80])
def test_bars_fit_the_terminal(profiles: Path, columns: int) -> None:
    command = [sys.executable, "-m", "efserve", "plan", "--rate", "a=900", "--slo", "a=40", "--profiles", str(profiles)]
    environment = os.environ | {"COLUMNS": str(columns)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    (bar,) = [line for line in done.stdout.splitlines() if line.endswith("%") and "|" in line]
    assert len(bar) == columns


def test_the_command_prints_json_alone_on_stdout(profiles: Path) -> None:
    arguments = ["plan", "--rate", "a=90", "--slo", "a=40", "--json", "--profiles", str(profiles)]
    done = CliRunner().invoke(main, arguments)
    assert json.loads(done.stdout)["schema"] == 1
    assert "breaks first" in done.stderr


def test_the_command_tells_what_would_be_possible(profiles: Path) -> None:
    arguments = ["plan", "--rate", "a=9000", "--slo", "a=40", "--policy", "gpulet", "--profiles", str(profiles)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "a: nearest possible:" in done.stderr
    assert "Error: a: the rates fill" in done.stderr


def test_along_every_path_of_an_application_the_slos_add_up_to_its_own() -> None:
    fastest_ms = {"a": 1, "b": 2, "c": 3, "d": 4}
    capacities = [Capacity(model, "onnx", (Point(100, 1, 1, 1000 / ms, ms),)) for model, ms in fastest_ms.items()]
    tree = Application(rate=10, slo_ms=60, steps={"a": [], "b": ["a"], "c": ["a"], "d": ["c"]})
    slos = {demand.model: demand.slo_ms for demand in split(tree, capacities)}
    assert slos["a"] + slos["c"] + slos["d"] == pytest.approx(60)
    assert slos["a"] + slos["b"] <= 60
    with pytest.raises(UsageError, match="wait for one another"):
        split(Application(rate=1, slo_ms=1, steps={"a": ["b"], "b": ["a"]}), capacities)


def test_a_workload_file_is_read_and_equal_models_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    models, applications = [{"model": "a", "rate": 5, "slo_ms": 9}], [{"rate": 2, "slo_ms": 8, "steps": {"a": []}}]
    path.write_text(json.dumps({"models": models, "applications": applications}))
    capacities = [Capacity("a", "onnx", (Point(100, 1, 1, 1000, 1),))]
    assert merged(read_workload(path, capacities)) == (Demand("a", 7, 8),)
    path.write_text('{"model": []}')
    with pytest.raises(UsageError, match="is no workload"):
        read_workload(path, capacities)


LOADS = {"a": Load(0.5, 0.2), "b": Load(0.1, 0.9), "c": Load(0.7, 0.7)}


def test_a_linear_truth_is_fitted_without_error() -> None:
    truth = Interference((0.1, 0.3, 0.2, 0.4, 1.0), LOADS)
    pairs = [
        Pair(me, pct, you, 100 - pct, truth.slowdown(me, pct, [(you, 100 - pct)]))
        for me in LOADS
        for you in LOADS
        for pct in (20, 40, 60, 80)
    ]
    fitted = fit(pairs, LOADS)
    assert fitted.coefficients == pytest.approx(truth.coefficients)
    assert fitted.error_pct is not None
    assert fitted.error_pct < 1e-6
    with pytest.raises(ConfigError, match="no memory load is known for d"):
        fit([Pair("d", 50, "a", 50, 1)], LOADS)
    alone = fit(pairs[:1], LOADS)
    assert alone.error_pct is None
    assert alone.slowdown("a", 20, [("a", 80)]) == pytest.approx(pairs[0].slowdown)
    with pytest.raises(ConfigError, match="no pair of models"):
        fit([], LOADS)


@pytest.mark.parametrize("policy", ["best", "gpulet"])
def test_plans_made_with_interference_hold_beside_their_neighbours(policy: str) -> None:
    points = tuple(Point(share, 4, 1, 4000 / ms, ms) for share, ms in ((25, 20), (50, 12), (100, 8)))
    capacities = tuple(Capacity(model, "onnx", points) for model in LOADS)
    interference = Interference((0.1, 0.3, 0.2, 0.4, 0.95), LOADS)
    demands = tuple(Demand(model, 150, 60) for model in LOADS)
    devices = tuple(Device(f"gpu{at}", "x") for at in range(3))
    plan = POLICIES[policy](Problem(demands, slowed(capacities, interference), devices))
    assert check(plan, capacities, interference) == []


def test_the_command_fits_measured_pairs_and_tells_the_error(profiles: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    loads = {"a": {"l2": 0.3, "dram": 0.2}, "b": {"l2": 0.5, "dram": 0.6}}
    pairs = [
        {"me": me, "my_pct": 50, "you": you, "your_pct": 50, "slowdown": slowdown}
        for me, you, slowdown in (("a", "a", 1.1), ("a", "b", 1.3), ("b", "a", 1.2), ("b", "b", 1.5))
    ]
    file.write_text(json.dumps({"loads": loads, "pairs": pairs}))
    arguments = ["plan", "--rate", "a=90", "--slo", "a=60", "--rate", "b=20", "--slo", "b=60", "--devices", "3"]
    done = CliRunner().invoke(main, [*arguments, "--profiles", str(profiles), "--interference", str(file)])
    assert done.exit_code == 0, done.output
    assert "pairs left out of the fit" in done.stdout
    for content in ("", "{}"):
        file.write_text(content)
        refused = CliRunner().invoke(main, [*arguments, "--profiles", str(profiles), "--interference", str(file)])
        assert refused.exit_code == 1
        assert "does not hold measured pairs" in refused.stderr
    missing = CliRunner().invoke(main, [*arguments, "--profiles", str(profiles), "--interference", "no-such-file"])
    assert "cannot read measured pairs" in missing.stderr


def test_measured_pairs_count_as_measured_and_others_by_the_fit() -> None:
    pairs = [Pair(me, 50, you, 50, 1.2) for me in LOADS for you in LOADS]
    pairs[1] = Pair("a", 50, "b", 50, 1.7)
    fitted = fit(pairs, LOADS)
    assert fitted.slowdown("a", 50, [("b", 50)]) == pytest.approx(1.7)
    assert 1 <= fitted.slowdown("a", 50, [("b", 25)]) < 1.7
    assert fitted.slowdown("a", 50, []) == 1


@given(
    st.tuples(*[st.floats(-0.5, 1)] * 4, st.floats(0.5, 1.5)),
    st.dictionaries(
        st.tuples(st.just("a"), st.just(25.0), st.sampled_from("abc"), st.sampled_from((25.0, 50.0))), st.floats(1, 4)
    ),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((25.0, 50.0))), max_size=3),
)
def test_no_neighbours_are_worse_than_the_worst(
    coefficients: tuple[float, float, float, float, float],
    measured: dict[tuple[str, float, str, float], float],
    neighbours: list[tuple[str, float]],
) -> None:
    interference = Interference(coefficients, LOADS, measured=measured)
    if sum(share for _, share in neighbours) <= 75:
        choices = [(model, share) for model in LOADS for share in (25.0, 50.0)]
        slow = interference.slowdown("a", 25, neighbours)
        assert 1 <= slow <= interference.worst("a", 25, choices) + 1e-9


def test_pairs_beside_the_profiles_count_unless_they_shall_not(profiles: Path) -> None:
    pairs = [Pair(me, 50, you, 50, 1.5) for me in "ab" for you in "ab"]
    loads = {"a": {"l2": 0.5, "dram": 0.2}, "b": {"l2": 0.1, "dram": 0.9}}
    text = json.dumps({"loads": loads, "pairs": [asdict(pair) for pair in pairs]})
    (profiles / DEVICE / "pairs.json").write_text(text)
    wanted = PlanConfig((("a", 1.0), ("b", 1.0)), (("a", 6.0), ("b", 100.0)), profiles=profiles, policy="gpulet")
    alone = run(replace(wanted, no_interference=True))
    assert alone.interference is None
    assert [placement.share_pct for placement in alone.plan.placements] == [50, 50]
    beside = run(wanted)  # 1.5 times 2.1 ms on a half are too slow for `a`
    assert beside.interference is not None
    assert [placement.share_pct for placement in beside.plan.placements] == [100]
    with pytest.raises(UsageError, match="contradict"):
        run(replace(wanted, no_interference=True, interference=Path("x")))


def test_a_workload_in_yaml_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "workload.yaml"
    models = "models:\n- {model: a, rate: 5, slo_ms: 9}\n"
    path.write_text(models + "applications:\n- rate: 2\n  slo_ms: 8\n  steps: {a: []}\n")
    capacities = [Capacity("a", "onnx", (Point(100, 1, 1, 1000, 1),))]
    assert merged(read_workload(path, capacities)) == (Demand("a", 7, 8),)
    for wrong in ("models: [", "models: 3"):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="is no workload"):
            read_workload(path, capacities)


def test_another_precision_runs_only_where_it_is_allowed(profiles: Path) -> None:
    write_profile(profiles, "b_int8", 0.5)
    wanted = PlanConfig((("b", 300.0),), (("b", 60.0),), profiles=profiles)
    engines = [
        {t.engine for p in made.plan.placements for t in p.tenants}
        for made in (
            run(wanted),
            run(replace(wanted, precision=("bf16",))),
            run(replace(wanted, precision=("bf16", "int8"))),
        )
    ]
    assert engines == [{"onnx"}, {"onnx"}, {"onnx:int8"}]


def test_a_precision_with_other_tensors_is_another_model(profiles: Path) -> None:
    write_profile(profiles, "b_fp16", 0.5)
    facts = profiles / DEVICE / "b_fp16.onnx.json"
    facts.write_text(facts.read_text().replace("FP32", "FP16"))
    made = run(PlanConfig((("b", 300.0),), (("b", 60.0),), profiles=profiles, precision=("fp16",)))
    assert {t.engine for p in made.plan.placements for t in p.tenants} == {"onnx"}


def test_the_command_draws_the_plan(profiles: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    arguments = ["plan", "--rate", "a=900", "--slo", "a=40", "--devices", "3", "--plot", str(picture)]
    done = CliRunner().invoke(main, [*arguments, "--profiles", str(profiles)])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
