"""What is sampled while levels run, from real servers."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from efserve.records import BenchResult, Samples, read_result
from live_server import SHIPPED, serve

OF_PROCESSES = {
    "client_cpu_cores",
    "client_rss_bytes",
    "server_cpu_cores",
    "server_rss_bytes",
    "gateway_cpu_cores",
    "workers_cpu_cores",
}
OF_PAGE = {"pending_requests", "workers_rss_bytes", "requests[digits]"}


def bench(folder: Path, *options: str) -> BenchResult:
    report = folder / "report.json"
    command = [sys.executable, "-m", "efserve", "bench", "--model", "digits", "--json", str(report), *options]
    load = ("--concurrency", "2", "--duration", "1.2", "--warmup", "0.1")
    done = subprocess.run([*command, *load], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_result(report)


def samples_of(result: BenchResult) -> Samples:
    (level,) = result.levels
    assert level.record.samples is not None
    assert level.record.samples.remark == ""
    return level.record.samples


def check_processes(found: Samples) -> None:
    assert found.time_us[0] < 100_000
    assert found.time_us.size >= 3
    for part in ("client", "gateway", "workers"):
        cores = found.series[f"{part}_cpu_cores"]
        assert np.isnan(cores[0])
        assert 0 < np.nanmean(cores) < 2
    assert 10 << 20 < found.series["server_rss_bytes"].min() < 4 << 30


def test_the_embedded_server_and_its_page(tmp_path: Path) -> None:
    result = bench(tmp_path, "--model-repository", str(SHIPPED))
    found = samples_of(result)
    assert set(found.series) >= OF_PROCESSES | OF_PAGE
    check_processes(found)
    counted = found.series["requests[digits]"]
    assert 0 < np.nanmax(counted) <= 1.1 * result.levels[0].record.requests.end_us.size


def test_a_server_on_this_machine_and_the_page_that_is_named(tmp_path: Path) -> None:
    with serve("--model", "digits", repository=SHIPPED) as server:
        found = samples_of(bench(tmp_path, "--url", server.url, "--metrics-url", str(server.status["metrics"])))
        assert set(found.series) >= OF_PROCESSES | OF_PAGE
        check_processes(found)
        assert set(samples_of(bench(tmp_path, "--url", server.url)).series) >= OF_PROCESSES


def test_load_from_several_processes_counts_them_all(tmp_path: Path) -> None:
    found = samples_of(bench(tmp_path, "--model-repository", str(SHIPPED), "--processes", "2"))
    check_processes(found)
    assert found.series["client_rss_bytes"].min() > 30 << 20
