"""`efserve bench` as users run it: real processes, real signals."""

import csv
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from efserve.commands.bench import command
from efserve.loadtest.config import BenchConfig
from efserve.records import read_result
from efserve.stats import level_statistics

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_dir"
BENCH = (sys.executable, "-m", "efserve", "bench")
QUICK = ("--duration", "0.3", "--warmup", "0.05")
EMBEDDED = ("--model-repository", str(SHIPPED), "--model", "digits", "--engine", "onnx")


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "tests" / "v2_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A benchmark that has printed the line of its first level."""
    command = [*BENCH, *arguments]
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for _ in range(3):  # target, heading, first level
                process.stdout.readline()
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what it had still to say on stdout."""
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, stdout


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of the thread that started them
    return [int(child) for children in lists for child in children.read_text().split()]


def gone(descriptor: int, within_s: float) -> bool:
    """True when the process of a pidfd ends in time."""
    return bool(select.select([descriptor], [], [], within_s)[0])


def listens(address: str) -> bool:
    parts = urlsplit(address)
    assert parts.port is not None
    with socket.socket() as client:
        return client.connect_ex((parts.hostname or "", parts.port)) == 0


def test_a_benchmark_of_a_server(tmp_path: Path, url: str) -> None:
    done = run(tmp_path, "--url", url, "--concurrency", "1:3:2", "--batch", "2", *QUICK, "--csv", "levels.csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = next((tmp_path / "reports").glob("bench-echo-*.json"))
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"Report: {report.relative_to(tmp_path)}", "CSV: levels.csv"]
    assert [line.split(",")[0] for line in lines[-4:-2]] == ["Concurrency: 1", "Concurrency: 3"]
    assert max(map(len, lines)) <= 80
    result = read_result(report)
    assert [level_statistics(level.record) for level in result.levels] == [level.statistics for level in result.levels]
    assert result.config["batch"] == 2
    rows = list(csv.DictReader((tmp_path / "levels.csv").read_text().splitlines()))
    assert [row["Concurrency"] for row in rows] == ["1", "3"]


@pytest.mark.parametrize("machine", ["--json", "--csv"])
def test_machine_output_has_stdout_for_itself(tmp_path: Path, url: str, machine: str) -> None:
    done = run(tmp_path, "--url", url, "--concurrency", "2", *QUICK, machine, "-")
    assert done.returncode == 0
    assert "Concurrency: 2, throughput:" in done.stderr
    if machine == "--json":
        assert json.loads(done.stdout)["levels"][0]["record"]["load"]["label"] == "2"
        assert not (tmp_path / "reports").exists()
    else:
        assert done.stdout.startswith("Concurrency,")
        assert len(done.stdout.splitlines()) == 2


def test_the_embedded_server_is_started_and_stopped(tmp_path: Path) -> None:
    done = run(tmp_path, *EMBEDDED, "--max-batch", "4", "--concurrency", "2", *QUICK, "--json", "r.json")
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "r.json")
    assert result.target.embedded
    assert result.levels[0].statistics.requests > 0
    assert result.levels[0].statistics.server is not None
    assert not listens(result.target.url)


def test_the_embedded_servers_own_words_tell_what_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path, "--model-repository", "nowhere", *QUICK)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "nowhere" in done.stderr
    done = run(tmp_path, *EMBEDDED, "--max-batch", "4", "--batch", "5", *QUICK)
    assert done.returncode == 1
    assert done.stderr == "Error: inference request batch-size must be <= 4 for 'digits'\n"


def test_a_model_that_cannot_load_is_told_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "models" / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    for arguments, says in (([], "has no model that is ready; broken: "), (["--model", "broken"], "did not start: ")):
        done = run(tmp_path, "--model-repository", "models", *arguments, *QUICK)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert says in done.stderr
        assert "cannot be loaded: InvalidProtobuf" in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_embedded_server_does_not_outlive_a_killed_benchmark(tmp_path: Path) -> None:
    with started(tmp_path, *EMBEDDED, "--concurrency", "1,2", "--warmup", "0", "--duration", "0.3") as process:
        (child,) = children(process.pid)
        descriptor = os.pidfd_open(child)
        try:
            process.kill()
            assert gone(descriptor, within_s=30)
        finally:
            os.close(descriptor)


def test_ctrl_c_reports_what_was_measured(tmp_path: Path, url: str) -> None:
    with started(tmp_path, "--url", url, "--concurrency", "1:50", *QUICK) as process:
        process.send_signal(signal.SIGINT)
        code, stdout = end(process)
    assert code == 130
    assert "Concurrency: 1, throughput:" in stdout
    result = read_result(next((tmp_path / "reports").iterdir()))
    assert result.interrupted
    assert 1 <= len(result.levels) < 50


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path, server: subprocess.Popen[str], url: str) -> None:
    with started(tmp_path, "--url", url, "--concurrency", "1:50", *QUICK) as process:
        server.send_signal(signal.SIGSTOP)  # no answer will come: the level cannot end
        try:
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "once more" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            code, _ = end(process)
        finally:
            server.send_signal(signal.SIGCONT)
    assert code == 130
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--concurrency", "x"], 2, "--concurrency: expected START:END[:STEP] or a list such as 1,2,4; got 'x'"),
        (["--url", "ftp://h"], 2, "URL 'ftp://h': expected http://HOST:PORT or https://HOST:PORT; other schemes"),
        (["--url", "http://h", "--threads", "1"], 2, "--threads is for the embedded server"),
        (["--json", "-", "--csv", "-"], 2, "--json - and --csv - cannot both have stdout"),
    ],
)
def test_usage_errors_are_one_sentence(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(f"Error: {says}")
    assert done.stderr.count("\n") == 1


def test_an_unreachable_server_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = run(tmp_path, "--url", url)
    assert (done.returncode, done.stderr) == (1, f"Error: cannot reach a server at {url}: connection refused\n")


def test_every_option_is_a_field_of_the_config() -> None:
    options = {parameter.name for parameter in command.params}
    assert options == {field.name for field in fields(BenchConfig)} | {"json_file", "csv_file", "plot"}
