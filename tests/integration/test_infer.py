"""`efserve infer` as users start it: here, and on a running server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from live_server import SHIPPED, serve

ROOT = SHIPPED.parent
DIGITS = ROOT / "examples" / "digits"
LABELS: dict[str, str] = json.loads((DIGITS / "labels.json").read_text())
FILES = [str(DIGITS / name) for name in LABELS]


def infer(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "efserve", "infer", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def rows(*words: str) -> list[dict[str, Any]]:
    run = infer(*words, "--json")
    assert run.returncode == 0, run.stderr
    found: list[dict[str, Any]] = json.loads(run.stdout)["rows"]
    return found


def top(found: list[dict[str, Any]]) -> dict[str, str]:
    return {Path(row["file"]).name: row["classes"][0]["label"] for row in found}


def test_every_shipped_sample_is_recognised_by_both_engines() -> None:
    for engine in ("onnx", "torchscript"):
        assert top(rows("digits", *FILES, "--engine", engine)) == LABELS


def test_server_gives_the_same_classes() -> None:
    here = rows("digits", *FILES)
    with serve(repository=SHIPPED) as server:
        there = rows("digits", *FILES, "--url", server.url)
        over_grpc = rows("digits", *FILES, "--url", f"grpc://{server.grpc}")
        unknown = infer("nix", FILES[0], "--url", server.url)
        unknown_over_grpc = infer("nix", FILES[0], "--url", f"grpc://{server.grpc}")
    assert top(there) == LABELS
    assert over_grpc == there
    assert (unknown.returncode, unknown.stderr) == (unknown_over_grpc.returncode, unknown_over_grpc.stderr)
    for one, other in zip(here, there, strict=True):
        for mine, theirs in zip(one["classes"], other["classes"], strict=True):
            assert abs(mine["score"] - theirs["score"]) < 1e-4
    assert (unknown.returncode, unknown.stderr) == (1, "Error: Request for unknown model: 'nix' is not found\n")


def test_table_fits_80_columns() -> None:
    run = infer("digits", "examples/digits/seven.png", "--top", "2")
    lines = [line.split() for line in run.stdout.splitlines()]
    assert lines[0] == ["File", "Class", "Label", "Score"]
    assert lines[1][:3] == ["examples/digits/seven.png", "7", "7"]
    assert len(lines) == 3
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_errors_are_one_sentence() -> None:
    for words in (("digits", "README.none"), ("digits", "pyproject.toml"), ("nix", FILES[0])):
        run = infer(*words)
        assert run.returncode in (1, 2)
        assert run.stderr.startswith("Error: ")
        assert len(run.stderr.splitlines()) == 1
