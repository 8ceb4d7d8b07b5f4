"""Open loops, traces, mixes, images, stress tests and several processes, as users run them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efserve.records import BenchResult, read_result
from efserve.stats import level_statistics
from live_server import RunningServer, serve
from onnx_models import identity, save

BENCH = (sys.executable, "-m", "efserve", "bench", "--warmup", "0.05")
SHIPPED = Path(__file__).parents[2] / "model_dir"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server with two models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        save(folder, name, identity())
    with serve("--instances", "1", repository=folder) as running:
        yield running


@pytest.fixture(scope="module")
def slow_url() -> Iterator[str]:
    """A server that answers each request after 20 ms."""
    command = [sys.executable, str(Path(__file__).parents[1] / "v2_server.py"), "--delay-us", "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def bench(folder: Path, url: str, *arguments: str) -> tuple[BenchResult, str]:
    """The result of a benchmark that went well, and what it printed."""
    command = [*BENCH, "--url", url, *arguments, "--json", "r.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    result = read_result(folder / "r.json")
    for level in result.levels:
        assert level_statistics(level.record) == level.statistics
    return result, done.stdout


def test_mixed_traffic_is_told_by_model(tmp_path: Path, server: RunningServer) -> None:
    models = [{"model": "one", "rate": 60, "slo_ms": 1000}, {"model": "two", "rate": 30, "batch": 2}]
    (tmp_path / "w.json").write_text(json.dumps({"models": models}))
    result, printed = bench(tmp_path, server.url, "--workload", "w.json", "--request-count", "90")
    (level,) = result.levels
    one, two = level.statistics.models
    assert (one.requests, two.requests) == (60, 30)
    assert one.within_slo == 60
    assert two.inferences_per_s == pytest.approx(2 * two.requests_per_s)
    counted = [counters.requests for counters in level.record.server if counters is not None]
    assert counted == [60, 30]  # by the server, too
    assert level.statistics.errors == {}
    assert "two" in printed


def test_a_trace_goes_to_the_models_it_names(tmp_path: Path, server: RunningServer) -> None:
    (tmp_path / "t.csv").write_text("seconds,model\n0,two\n0.05,one\n0.05,two\n0.2,two\n")
    result, _ = bench(tmp_path, server.url, "--schedule", "t.csv", "--processes", "2")
    record = result.levels[0].record
    assert [model.name for model in record.models] == ["two", "one"]
    assert np.bincount(record.requests.model).tolist() == [3, 1]
    assert record.pool is not None
    assert record.pool.processes == 2


def test_a_stress_test_counts_its_clients(tmp_path: Path, server: RunningServer) -> None:
    arguments = ("--model", "one", "--clients", "3", "--total-clients", "12", "--requests-per-client", "5")
    result, printed = bench(tmp_path, server.url, *arguments, "--processes", "2")
    (level,) = result.levels
    assert level.record.clients is not None
    assert level.record.clients.requests.tolist() == [5] * 12
    assert level.statistics.requests == 60
    assert "Clients" in printed


def test_more_than_the_capacity_is_unstable_and_reported(tmp_path: Path, slow_url: str) -> None:
    """Two connections to a server that takes 20 ms: it answers 100 requests/s."""
    arguments = ("--request-rate", "50,200", "--max-connections", "2", "--duration", "1.5", "--processes", "2")
    result, printed = bench(tmp_path, slow_url, *arguments)
    below, above = result.levels
    assert below.statistics.latency is not None
    assert above.statistics.latency is not None
    assert not above.record.stable
    assert above.record.reason.startswith("latency grows: the server does not keep up with")
    assert "latency grows" in " ".join(printed.split())
    assert above.statistics.requests_per_s <= 101
    assert above.record.pool is not None
    assert above.record.pool.unanswered > below.record.pool.unanswered if below.record.pool else False


def test_images_are_prepared_as_the_models_config_says(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        pixels = np.full((20, 30), 60 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    with serve("--instances", "1", repository=SHIPPED) as running:
        arguments = ("--input", "images", "--batch", "3", "--concurrency", "1", "--request-count", "10")
        result, _ = bench(tmp_path, running.url, *arguments)
        assert result.target.inputs == ("input FP32 [3, 1, 8, 8]",)
        assert result.levels[0].statistics.requests == 10
    assert result.target.config is not None
    assert result.target.config["parameters"]["image.interpolation"]["string_value"] == "box"


@pytest.mark.parametrize("load", [("--duration", "60"), ("--request-count", "3000", "--duration", "60")])
def test_a_dead_process_of_load_is_told_at_once(tmp_path: Path, slow_url: str, load: tuple[str, ...]) -> None:
    command = [*BENCH, "--url", slow_url, "--request-rate", "50", "--processes", "2", *load, "--window", "20000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):  # target, heading: load begins
            process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[0]), signal.SIGKILL)
        _, errors = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "of the load generator was killed by SIGKILL; the level cannot be measured" in errors
    assert errors.count("\n") == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children)
