"""`examples/gpu_proof.py` on the CPU: each kind of section for real, with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[1] / "examples" / "gpu_proof.py"


def proof(*options: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def sections(*names: str) -> list[str]:
    return [word for name in names for word in ("--section", name)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    told = json.loads(path.read_text())
    assert told["schema_version"] == 1
    assert told["cpu"] is True
    rows: list[dict[str, Any]] = told["rows"]
    return rows


def test_figures_as_a_table_and_as_json(tmp_path: Path) -> None:
    result = tmp_path / "proof.json"
    ended = proof("--cpu", "--json", result, *sections("machine", "staging", "bert", "mps"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    rows = rows_of(result)
    assert {row["section"] for row in rows} == {"machine", "staging", "bert", "mps"}
    measured = [row for row in rows if row["value"] is not None]
    assert all(row["value"] > 0 for row in measured)
    assert [row["note"] for row in rows if row["failed"]] == ["a CPU has no MPS"]
    assert len(ended.stdout.splitlines()) == len(rows) + 2
    assert ended.stdout.endswith(f"{len(measured)} figures; 1 sections, or parts of them, did not run\n")


def test_shares_are_processes_in_partitions(tmp_path: Path) -> None:
    result = tmp_path / "proof.json"
    assert proof("--cpu", "--json", result, *sections("green")).returncode == 0
    rows = rows_of(result)
    assert not any(row["failed"] for row in rows), rows
    assert [row["name"] for row in rows] == [
        "the whole device: SMs (cores) obtained",
        "50 %: SMs (cores) obtained",
        "two side by side without shares",
        "two side by side with 50 % each",
    ]


def test_a_section_that_fails_is_one_line(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = tmp_path / "proof.json"
    ended = proof("--json", result, *sections("matrix", "staging"))
    assert ended.returncode == 1
    rows = json.loads(result.read_text())["rows"]
    assert [(row["section"], row["failed"]) for row in rows] == [("matrix", True), ("staging", True)]
    assert all("finds no GPU here; --cpu tries the script without one" in row["note"] for row in rows)


def test_no_time_is_one_line_for_each_section() -> None:
    ended = proof("--cpu", "--budget-s", "0", *sections("machine", "matrix"))
    assert ended.returncode == 1
    assert ended.stdout.count("the time for everything is used up") == 2


def test_an_unknown_section() -> None:
    ended = proof("--section", "nothing")
    assert ended.returncode == 2
    assert "there is no section 'nothing'; choose among machine, matrix" in ended.stderr
