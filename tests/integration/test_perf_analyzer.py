"""NVIDIA's perf_analyzer works against the server unchanged."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_server import MODELS, SHIPPED, RunningServer, serve

PerfAnalyzer = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("--measurement-interval", "300", "--stability-percentage", "999")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--model", "digits", "--allow-client-shm", repository=SHIPPED) as running:
        yield running


def test_concurrency_over_http(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    ended = perf_analyzer("-m", "digits", "-u", server.address, "--concurrency-range", "1:3:2", *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Concurrency: 3, throughput: [1-9]", ended.stdout)
    assert "Avg request latency" in ended.stdout  # the server's own split, from its statistics


def test_batches(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    ended = perf_analyzer("-m", "digits", "-u", server.address, "-b", "4", *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_json_tensors(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    formats = ("--input-tensor-format", "json", "--output-tensor-format", "json")
    ended = perf_analyzer("-m", "digits", "-u", server.address, *formats, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_request_rate(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    rate = ("--request-rate-range", "100", "--request-distribution", "poisson")
    ended = perf_analyzer("-m", "digits", "-u", server.address, *rate, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_own_input_data(server: RunningServer, perf_analyzer: PerfAnalyzer, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"input": {"content": [0.5] * 64, "shape": [1, 8, 8]}}]}))
    ended = perf_analyzer("-m", "digits", "-u", server.address, "--input-data", str(data), *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("mode", [(), ("--async",), ("--streaming", "--async")])
def test_grpc(server: RunningServer, perf_analyzer: PerfAnalyzer, mode: tuple[str, ...]) -> None:
    ended = perf_analyzer("-m", "digits", "-u", server.grpc, "-i", "grpc", "--concurrency-range", "4", *mode, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Concurrency: 4, throughput: [1-9]", ended.stdout)


def test_grpc_compression(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    options = ("-i", "grpc", "--grpc-compression-algorithm", "gzip", "-b", "4")
    ended = perf_analyzer("-m", "digits", "-u", server.grpc, *options, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("rows", ["1", "4"])
def test_system_shared_memory(server: RunningServer, perf_analyzer: PerfAnalyzer, rows: str, protocol: str) -> None:
    memory = ("--shared-memory", "system", "--output-shared-memory-size", "4096", "-i", protocol)
    address = server.grpc if protocol == "grpc" else server.address
    ended = perf_analyzer("-m", "digits", "-u", address, "-b", rows, *memory, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_strings_in_shared_memory(perf_analyzer: PerfAnalyzer) -> None:
    with serve("--model", "echo", "--allow-client-shm", repository=MODELS) as server:
        shapes = [
            option for spec in server.get("/v2/models/echo")[1]["inputs"] for option in ("--shape", f"{spec['name']}:3")
        ]
        for memory in ((), ("--shared-memory", "system")):
            strings = ("--string-data", "hello", *memory)
            ended = perf_analyzer("-m", "echo", "-u", server.address, *shapes, *strings, *QUICK)
            assert ended.returncode == 0, ended.stdout + ended.stderr


def test_collect_metrics(server: RunningServer, perf_analyzer: PerfAnalyzer) -> None:
    metrics = ("--collect-metrics", "--metrics-url", f"{server.status['metrics']}/metrics")
    ended = perf_analyzer("-m", "digits", "-u", server.address, *metrics, *QUICK)
    assert ended.returncode == 0, ended.stdout + ended.stderr
