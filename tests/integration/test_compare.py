"""`efserve compare` as users run it: embedded servers, reports, Ctrl-C."""

import json
import signal
import subprocess
import sys
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "model_dir"
COMPARE = (sys.executable, "-m", "efserve", "compare", "one=--threads 1", "same=--threads 1", "--model", "digits")
QUICK = ("--model-repository", str(SHIPPED), "--duration", "0.3", "--warmup", "0.05", "--concurrency", "2")


def test_two_embedded_servers(tmp_path: Path) -> None:
    command = [*COMPARE, *QUICK, "--rounds", "2", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, cwd=tmp_path)
    document = json.loads(done.stdout)
    assert [contender["name"] for contender in document["contenders"]] == ["one", "same"]
    assert all(turn["statistics"]["requests"] > 0 for turns in document["rounds"] for turn in turns)
    assert len({contender["target"]["url"] for contender in document["contenders"]}) == 2
    assert "Median of 2 rounds" in done.stderr
    assert max(len(line) for line in done.stderr.splitlines()) <= 80


def test_ctrl_c_reports_the_rounds_that_are_over(tmp_path: Path) -> None:
    command = [*COMPARE, *QUICK, "--rounds", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round  2"):
                process.send_signal(signal.SIGINT)
                break
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "This round is given up" in said
    assert "Report: reports/compare-" in printed
    (report,) = (tmp_path / "reports").iterdir()
    document = json.loads(report.read_bytes())
    assert document["interrupted"] is True
    assert len(document["rounds"]) in (1, 2)
