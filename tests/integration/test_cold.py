"""`efserve bench --cold`: servers started anew, and their phases."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efserve.cold_starts import PHASES
from live_server import MODELS, SHIPPED

BENCH = (sys.executable, "-m", "efserve", "bench")


def bench(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*BENCH, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=100)


def test_the_phases_are_what_a_start_takes(tmp_path: Path) -> None:
    done = bench(tmp_path, "--cold", "2", "--model-repository", str(SHIPPED), "--instances", "2", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["kind"], result["model"], result["engine"]) == ("cold", "digits", "onnx")
    assert len(result["starts"]) == 2
    for start in (result["first"], *result["starts"]):
        assert sum(start[phase] for phase in PHASES) == pytest.approx(start["ready_s"])
        assert min(start.values()) > 0
    assert "start to READY, ms" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_a_model_that_does_not_start(tmp_path: Path) -> None:
    done = bench(tmp_path, "--cold", "1", "--model-repository", str(MODELS), "--model", "raises_in_load")
    assert done.returncode == 1
    assert "model 'raises_in_load' did not start" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--url", "http://127.0.0.1:9"), "--cold starts servers of its own, which --url replaces"),
        (("--concurrency", "4"), "--concurrency and --cold both say which load"),
        (("--plot",), "--csv and --plot are for measurements under load"),
    ],
)
def test_what_it_does_not_go_with(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = bench(tmp_path, "--cold", *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_ctrl_c_reports_the_starts_that_were_done(tmp_path: Path) -> None:
    words = [*BENCH, "--cold", "1000", "--model-repository", str(SHIPPED), "--json", "cold.json"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "start 2:" in line:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(timeout=60) == 130
    result = json.loads((tmp_path / "cold.json").read_text())
    assert result["interrupted"]
    assert len(result["starts"]) >= 1
