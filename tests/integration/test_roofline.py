"""`efserve profile --roofline` as a process: real files, a real measurement of this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_models

QUICK = ("--min-time", "0.05", "--min-repetitions", "5")


def roofline(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    where = ["--model-repository", str(folder / "models"), "--output", str(folder / "out")]
    command = [sys.executable, "-m", "efserve", "profile", "--roofline", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a network and a model that only torch reads."""
    onnx_models.save(tmp_path / "models", "cnn", onnx_models.cnn())
    other = tmp_path / "models" / "other" / "1"
    other.mkdir(parents=True)
    (other / "model.pt").write_bytes(b"")
    return tmp_path


def test_the_figures_of_a_model(folder: Path) -> None:
    done = roofline(folder, "--json", "--max-batch", "3", "--cores", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ceilings = told["ceilings"]
    assert ceilings["peaks"].keys() == {"FP32"}
    assert ceilings["part"].startswith("1 of ")
    peak, memory = ceilings["peaks"]["FP32"]["per_s"], ceilings["memory"]["per_s"]
    assert told["ridge_operations_per_byte"] == pytest.approx(peak / memory)
    (model,) = told["models"]
    assert model["inputs"] == {"input": "FP32 [batch,1,28,28]"}
    assert [point["batch"] for point in model["points"]] == [1, 2, 3]
    for point in model["points"]:
        operations = sum(point["cost"]["operations"].values())
        assert point["cost"]["macs"] == point["batch"] * 11_992_448
        assert point["intensity"] == pytest.approx(operations / point["cost"]["fused_bytes"])
        assert point["most_rows_per_s"] <= point["batch"] * peak / operations * 1.0001
        assert point["measured_rows_per_s"] is point["achieved_pct"] is None
    assert "there is no profile" in model["remark"]
    assert told["failures"] == []
    (skipped,) = told["skipped"]
    assert skipped.startswith("other: the roofline reads ONNX files only")
    assert "cnn 1, onnx, input FP32 [batch,1,28,28]" in done.stderr


def test_after_a_grid_it_tells_what_was_achieved(folder: Path) -> None:
    done = roofline(folder, "--grid", "--model", "cnn", "--batches", "1,4", "--plot", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "* Most throughput:" in done.stdout
    lines = done.stdout.partition("Ridge point")[2].splitlines()
    parts = [line.split() for line in lines if line.split()[:1] in (["1"], ["4"])]
    assert [part[0] for part in parts] == ["1", "4"]
    assert all(part[-1].endswith("%") for part in parts)
    (picture,) = (folder / "out").glob("*/roofline.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "other"), "no model to draw a roofline of: other: the roofline reads ONNX files only"),
        (("--engine", "torchscript", "--grid"), "--engine torchscript: the roofline reads ONNX files only"),
        (("--grid", "--json"), "--json prints one result"),
        (("--model", "cnn", "--shape", "input:1,2,3"), "--shape input"),
        (("--device", "gpu99"), "gpu99"),
    ],
)
def test_wrong_usage_is_told_before_measuring(folder: Path, options: tuple[str, ...], message: str) -> None:
    done = roofline(folder, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_broken_file_is_one_sentence(folder: Path) -> None:
    (folder / "models" / "cnn" / "1" / "model.onnx").write_bytes(b"\x00not a model")
    done = roofline(folder, "--model", "cnn")
    assert done.returncode == 2
    assert "cannot read the graph of" in done.stderr
    assert "Traceback" not in done.stderr
