"""`efserve convert` as users start it, interrupted, offline and without torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnx_models

TESTS = Path(__file__).parents[1]
LINEAR = ("torch_models:Linear", "--input-shape", "4")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "efserve", "convert", *words]


def convert(repository: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command in the folder of the test modules, which makes them importable."""
    return subprocess.run(
        [*command(*words), "--model-repository", str(repository)],
        cwd=TESTS,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_report_and_progress_for_people(tmp_path: Path) -> None:
    run = convert(tmp_path, *LINEAR)
    assert run.returncode == 0, run.stderr
    assert [line.removesuffix(" ...") for line in run.stderr.splitlines()] == [
        "Load torch_models:Linear",
        "Run the source model",
        "Write model.onnx",
        "Write model.pt",
        "Compare model.onnx with the source",
        "Compare model.pt with the source",
    ]
    rows = [line.split()[:2] for line in run.stdout.splitlines() if line.startswith("model.")]
    assert rows == [["model.onnx", "1"], ["model.onnx", "3"], ["model.pt", "1"], ["model.pt", "3"]]
    assert max(len(line.rstrip()) for line in run.stdout.splitlines() if str(tmp_path) not in line) <= 80


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    result = json.loads(convert(tmp_path, *LINEAR, "--json", "--name", "net").stdout)
    assert (result["name"], result["version"], result["max_batch_size"]) == ("net", 1, 8)
    assert all(found["passed"] for found in result["parity"])
    assert set(result["file_bytes"]) == {"model.onnx", "model.pt"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["Load", "Write model.pt", "Compare model.pt"])
def test_interrupted_convert_leaves_nothing(tmp_path: Path, step: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*command(*LINEAR), "--model-repository", str(tmp_path / "models")],
        cwd=TESTS,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(step):
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest
    assert not (tmp_path / "models").exists()


def test_killed_convert_leaves_nothing_that_is_seen_and_the_next_cleans_up(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command(*LINEAR), "--model-repository", str(tmp_path)], cwd=TESTS, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Compare"):
                process.kill()
                break
        process.wait(timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == [".Linear.convert"]
    assert convert(tmp_path, *LINEAR).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["Linear"]


def test_vision_transformer_in_half_precision(tmp_path: Path) -> None:
    words = ("torch_models:vision_transformer", "--input-shape", "3,32,32", "--precision", "fp16", "--name", "vit")
    run = convert(tmp_path, *words)
    assert run.returncode == 0, run.stderr
    (tmp_path / "vit" / "config.pbtxt").unlink()  # the engine then has to find out by itself that it is half precision
    np.save(tmp_path / "zeros.npy", np.zeros((1, 3, 32, 32), np.float16))
    infer = [
        sys.executable,
        "-m",
        "efserve",
        "infer",
        "vit",
        "zeros.npy",
        "--model-repository",
        ".",
        "--engine",
        "onnx",
    ]
    ended = subprocess.run(infer, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr


def test_existing_version_needs_force(tmp_path: Path) -> None:
    assert convert(tmp_path, *LINEAR, "--format", "onnx").returncode == 0
    again = convert(tmp_path, *LINEAR)
    assert again.returncode == 2
    assert again.stderr.startswith("Error: ")
    assert "--force" in again.stderr
    assert convert(tmp_path, *LINEAR, "--force").returncode == 0
    assert (tmp_path / "Linear" / "1" / "model.pt").is_file()


def test_weights_that_cannot_be_downloaded(tmp_path: Path) -> None:
    run = convert(
        tmp_path / "models",
        "resnet18",
        TORCH_HOME=str(tmp_path),  # nothing is cached there
        https_proxy="http://127.0.0.1:1",  # nobody listens there
        HTTPS_PROXY="http://127.0.0.1:1",
        no_proxy="",
        NO_PROXY="",
    )
    assert run.returncode == 1
    error = run.stderr.splitlines()[-1]
    assert error.startswith("Error: the weights of resnet18 could not be downloaded")
    assert "--weights FILE" in error
    assert "--weights none" in error
    assert not (tmp_path / "models").exists()


def test_parity_failure_is_exit_code_1(tmp_path: Path) -> None:
    run = convert(tmp_path / "models", "torch_models:FixedBatch", "--input-shape", "4")
    assert run.returncode == 1
    assert "differs from its source at batch 1" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "models").exists()


def test_onnx_needs_no_torch_and_the_rest_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(onnx_models.cnn())
    without_torch = "import sys; sys.modules['torch'] = None; from efserve.cli import main; main()"
    words = [sys.executable, "-c", without_torch, "convert"]
    options = ["--model-repository", str(tmp_path / "models")]
    run = subprocess.run([*words, str(tmp_path / "net.onnx"), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "models" / "net" / "1" / "model.onnx").is_file()
    run = subprocess.run([*words, "resnet18", *options], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "Error: converting 'resnet18' needs PyTorch: pip install 'efserve[torch]'\n"
