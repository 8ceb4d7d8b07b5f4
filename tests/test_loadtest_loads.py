"""From options to work: schedules of open loops, mixes, traces; options that contradict each other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efserve.errors import UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.job import ClientsJob, ClosedJob, OpenJob, Schedule
from efserve.loadtest.levels import parse_range, parse_rates
from efserve.loadtest.loads import SPARE_S, lasts_to_the_end, read_mix, work_of
from efserve.records import Load

QUICK = BenchConfig(duration_s=2.0, warmup_s=1.0, window_ms=500)


def schedule(config: BenchConfig, load: Load | None = None) -> Schedule:
    mix = read_mix(config)
    asked = load or mix.load() or config.loads[0]
    work = work_of(asked, config, mix)
    assert isinstance(work, OpenJob)
    assert work.max_connections == config.max_connections
    return work.schedule


def workload(folder: Path, document: object, name: str = "w.json") -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_rates_need_not_be_whole() -> None:
    assert parse_rates("0.5:2:0.5") == (0.5, 1.0, 1.5, 2.0)
    assert parse_rates("100:300:100") == (100, 200, 300)
    assert parse_rates("7,2.5") == (7, 2.5)
    for text in ("0", "-1", "x", "1:2:0", "3:2", "2e6", "1,1", "1:1000000"):
        with pytest.raises(UsageError, match="--request-rate"):
            parse_rates(text)


def test_ranges_of_a_shape() -> None:
    assert parse_range("0:10") == (0, 10, 0)
    assert parse_range("10:100:30") == (10, 100, 30)
    for text in ("10", "10:10", "10:5", "1:2:3", "1:2:0", "a:b", "1:2:3:4"):
        with pytest.raises(UsageError, match="a load shape needs"):
            parse_range(text)


def test_a_rate_lasts_beyond_the_last_window() -> None:
    times = schedule(replace(QUICK, request_rate="100")).dues_ns
    assert len(times) == 100 * (1 + 2 + SPARE_S)
    assert np.diff(times).tolist() == pytest.approx([1e7] * (len(times) - 1), abs=1)


@pytest.mark.parametrize("distribution", ["constant", "poisson", "gamma"])
def test_a_request_count_is_exact(distribution: str) -> None:
    for seed in range(5):
        config = replace(QUICK, request_rate="50", distribution=distribution, request_count=123, gamma_cv=3, seed=seed)
        assert len(schedule(config).dues_ns) == 123
        assert lasts_to_the_end(config.loads[0], config)


def test_shapes_last_as_long_as_the_duration() -> None:
    config = replace(QUICK, request_rate="100:500", load_shape="ramp")
    (load,) = config.loads
    assert (load.value, load.shape, load.label) == (500, "ramp", "ramp 100:500/s")
    times = schedule(config).dues_ns
    assert len(times) == pytest.approx(600, abs=1)
    assert times[-1] <= 2e9
    assert lasts_to_the_end(load, config)


def test_a_workload_mixes_its_models(tmp_path: Path) -> None:
    document = {"models": [{"model": "a", "rate": 100}, {"model": "b", "rate": 50, "batch": 2, "slo_ms": 3}]}
    config = replace(QUICK, workload=workload(tmp_path, document))
    mix = read_mix(config)
    assert mix.load() == Load("rate", 150.0, "mixed", label="mixed 150/s")
    found = schedule(config)
    assert (np.diff(found.dues_ns) >= 0).all()
    assert np.bincount(found.models).tolist() == [800, 400]
    twice = schedule(config, Load.rate(300))
    assert np.bincount(twice.models).tolist() == [1600, 800]


def test_a_yaml_workload_says_the_same(tmp_path: Path) -> None:
    text = "models:\n  - {model: a, rate: 100}\n  - model: b\n    rate: 50\n    shapes: {x: [3, 4]}\n"
    mix = read_mix(replace(QUICK, workload=workload(tmp_path, text, "w.yaml")))
    assert [(share.model, share.rate, share.shape_options) for share in mix.shares] == [
        ("a", 100.0, ()),
        ("b", 50.0, ("x:3,4",)),
    ]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("nonsense", "malformed"),
        ("[]", "Expected `object`"),
        ({"models": []}, "expected 1 to 255 models"),
        ({"models": [{"model": "a"}]}, "missing required field `rate`"),
        ({"models": [{"model": "a", "rate": 0}]}, "> 0"),
        ({"models": [{"model": "a", "rate": 1, "speed": 2}]}, "unknown field `speed`"),
        ({"models": [{"model": "a", "rate": 1, "distribution": "x"}]}, "distribution 'x' is none of constant"),
    ],
)
def test_wrong_workloads_are_one_sentence(tmp_path: Path, document: object, says: str) -> None:
    path = workload(tmp_path, document)
    with pytest.raises(UsageError, match="--workload") as caught:
        read_mix(replace(QUICK, workload=path))
    assert says in str(caught.value)


def test_wrong_yaml_and_missing_files_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not YAML"):
        read_mix(replace(QUICK, workload=workload(tmp_path, "a: [", "w.yml")))
    for config in (replace(QUICK, workload="nowhere.json"), replace(QUICK, schedule="nowhere.csv")):
        with pytest.raises(UsageError, match="cannot read it"):
            read_mix(config)
    (tmp_path / "t").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        read_mix(replace(QUICK, schedule=str(tmp_path / "t")))


def test_a_trace_is_replayed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("5\n5.25,b\n6,\n")
    config = replace(QUICK, schedule=str(tmp_path / "t.csv"))
    mix = read_mix(config)
    assert mix.models == ("", "b")
    found = schedule(config)
    assert found.dues_ns.tolist() == [0, 250_000_000, 1_000_000_000]
    assert found.models.tolist() == [0, 1, 0]


def test_clients_and_closed_loops() -> None:
    config = replace(QUICK, clients=5)
    assert work_of(config.loads[0], config, read_mix(config)) == ClientsJob(5, 100, 10)
    config = replace(QUICK, clients=5, total_clients=7, requests_per_client=3)
    assert work_of(config.loads[0], config, read_mix(config)) == ClientsJob(5, 7, 3)
    config = replace(QUICK, concurrency="4", request_count=9)
    assert work_of(config.loads[0], config, read_mix(config)) == ClosedJob(4, 9)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (BenchConfig(concurrency="1", request_rate="2"), "--concurrency and --request-rate both say which load"),
        (BenchConfig(schedule="a", workload="b"), "--schedule and --workload both say which load"),
        (BenchConfig(load_shape="ramp"), "--load-shape goes with --request-rate only"),
        (BenchConfig(total_clients=3), "--total-clients goes with --clients only"),
        (BenchConfig(clients=3, total_clients=2), "--total-clients 2 is less than --clients 3"),
        (BenchConfig(clients=3, request_count=2), "--request-count goes with --concurrency or"),
        (BenchConfig(request_rate="1:2", load_shape="sine", request_count=5), "does not go with --request-count"),
        (BenchConfig(request_rate="1:2", load_shape="sine", max_rate_under_slo=5), "go with --max-rate-under-slo"),
        (BenchConfig(request_rate="5", latency_threshold=1, max_rate_under_slo=5), "are two searches"),
        (BenchConfig(request_rate="5", load_shape="sine"), "a load shape needs a range"),
        (BenchConfig(distribution="poisson"), "--distribution poisson goes with --request-rate or"),
        (BenchConfig(workload="w", model="m"), "--model does not go with --workload"),
        (BenchConfig(goodput=("m=x",)), "--goodput: expected MODEL=MS"),
        (BenchConfig(goodput=("0",)), "--goodput: expected MODEL=MS"),
    ],
)
def test_options_that_contradict_each_other(config: BenchConfig, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.check()
    assert says in str(caught.value)


def test_too_long_a_schedule_is_refused() -> None:
    config = replace(QUICK, request_rate="1000000", duration_s=100)
    with pytest.raises(UsageError, match="lower the rate"):
        schedule(config)


def test_goals_of_goodput() -> None:
    assert BenchConfig(goodput=("a=5", "b=2.5")).slo_ms == {"a": 5.0, "b": 2.5}
    assert BenchConfig(goodput=("7",)).slo_ms == {"": 7.0}
