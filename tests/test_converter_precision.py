"""Precisions below fp32: what is written, and that the figures of its loss are true."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_models
from efserve.converter.convert import convert
from efserve.converter.job import ConvertJob, ConvertResult
from efserve.converter.quantize import quantize
from efserve.engines import base
from efserve.engines.base import Source
from efserve.errors import ConversionFailed, UsageError
from efserve.partition import Partition
from efserve.pbtxt import read_config
from efserve.precision import describe, read_parity
from efserve.repository import scan
from efserve.tensors import Array, TensorSpec

TESTS = Path(__file__).parent


def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_models.cnn())
    return path


def samples(tmp_path: Path, rows: int = 64) -> Path:
    path = tmp_path / "samples.npy"
    np.save(path, np.random.default_rng(7).standard_normal((rows, 1, 28, 28)).astype(np.float32))
    return path


def run(source: Path | str, tmp_path: Path, **options: Any) -> ConvertResult:
    return convert(ConvertJob(str(source), tmp_path / "models", **options), lambda step: None)


def answers(folder: Path, inputs: Array, engine: str = "") -> Array:
    (model,) = scan([folder.parents[1]], [folder.parent.name]).models
    chosen = model.resolve(int(folder.name), engine)
    loaded = base.load(chosen.engine, Source(chosen.folder, chosen.config, Partition()))
    return np.array(loaded.infer([inputs])[0])


def test_int8_and_its_figures(tmp_path: Path) -> None:
    path = samples(tmp_path)
    result = run(source(tmp_path), tmp_path, precision="int8", calibration=str(path), format="onnx")
    run(source(tmp_path), tmp_path)
    assert result.name == "net_int8"
    assert {spec.datatype for spec in (*result.inputs, *result.outputs)} == {"FP32"}
    assert result.file_bytes["model.onnx"] < 1_500_000  # of 4.8 MB
    judged = np.load(path)[::4]  # the others calibrated
    exact = np.asarray(answers(tmp_path / "models/net/1", judged), np.float32)
    found = np.asarray(answers(tmp_path / "models/net_int8/1", judged), np.float32)
    (loss,) = result.losses
    assert (loss.samples, loss.engine, loss.inputs) == (16, "onnx", "samples.npy")
    assert loss.max_abs == pytest.approx(np.abs(exact - found).max(), rel=1e-3)
    assert loss.mean_abs == pytest.approx(np.abs(exact - found).mean(), rel=1e-3)
    assert loss.scale == pytest.approx(np.abs(exact).max(), rel=1e-3)
    assert loss.top1_agreement == np.mean(exact.argmax(1) == found.argmax(1))
    assert loss.max_abs > 0
    parity = read_parity(result.folder)
    assert parity is not None
    assert (parity.precision, parity.losses, parity.differences) == ("int8", result.losses, result.parity)
    assert read_config(result.folder.parent / "config.pbtxt", "net_int8").parameters["precision"] == "int8"
    by_openvino = np.asarray(answers(result.folder, judged, "openvino"), np.float32)
    assert np.abs(by_openvino - exact).max() < 3 * loss.max_abs


def test_calibration_that_has_nothing_to_do_with_what_is_seen(tmp_path: Path) -> None:
    rows = np.random.default_rng(7).standard_normal((64, 1, 28, 28)).astype(np.float32)
    rows[np.arange(64) % 4 != 0] *= 1e-4  # the rows that calibrate
    np.save(tmp_path / "dark.npy", rows)
    with pytest.raises(ConversionFailed, match=r"model.onnx.*(differs|largest score).*nothing was written"):
        run(source(tmp_path), tmp_path, precision="int8", calibration=str(tmp_path / "dark.npy"))
    assert not (tmp_path / "models").exists()


def test_int8_for_tensorrt_is_signed_around_zero_and_leaves_biases_alone(tmp_path: Path) -> None:
    fp32, int8 = source(tmp_path), tmp_path / "int8.onnx"
    rows = [(row[None],) for row in np.load(samples(tmp_path))]
    quantize(fp32, int8, (TensorSpec("input", "FP32", (1, 28, 28)),), rows, for_tensorrt=True)
    graph = onnx.load(str(int8)).graph
    points = [
        numpy_helper.to_array(weight)
        for weight in graph.initializer
        if any(weight.name == node.input[2] for node in graph.node if node.op_type == "QuantizeLinear")
    ]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_without_samples_random_ones_calibrate_and_the_user_is_told(tmp_path: Path) -> None:
    result = run(source(tmp_path), tmp_path, precision="int8", name="small")
    assert result.name == "small"
    assert result.losses[0].inputs == "random images"
    assert any("calibrated on random images: give samples" in note for note in result.notes)


def test_few_samples_are_told(tmp_path: Path) -> None:
    result = run(source(tmp_path), tmp_path, precision="int8", calibration=str(samples(tmp_path, 3)))
    assert any("3 samples are few" in note for note in result.notes)


def test_bf16_is_fp32_in_the_file_and_bf16_in_openvino(tmp_path: Path) -> None:
    result = run(source(tmp_path), tmp_path, precision="bf16")
    config = read_config(result.folder.parent / "config.pbtxt", "net_bf16")
    assert (config.engine, config.parameters["precision"]) == ("openvino", "bf16")
    assert onnx.load(str(result.folder / "model.onnx")).graph.initializer[0].data_type == onnx.TensorProto.FLOAT
    assert result.losses[0].engine == "openvino"
    assert 0 <= result.losses[0].max_abs < 0.02 * result.losses[0].scale


def test_bf16_of_a_torch_model_is_in_both_files(tmp_path: Path) -> None:
    job: dict[str, Any] = {"input_shape": ("1,28,28",), "weights": "none"}
    plain = run("torch_models:TinyCnn", tmp_path, **job)
    result = run("torch_models:TinyCnn", tmp_path, precision="bf16", **job)
    assert [(loss.format, loss.engine) for loss in result.losses] == [
        ("onnx", "openvino"),
        ("torchscript", "torchscript"),
    ]
    assert result.inputs == plain.inputs
    assert result.outputs == plain.outputs
    assert result.file_bytes["model.pt"] < 0.7 * plain.file_bytes["model.pt"]
    assert max(loss.max_abs / loss.scale for loss in result.losses) < 0.05


def test_fp16_is_measured_too(tmp_path: Path) -> None:
    result = run(source(tmp_path), tmp_path, precision="fp16")
    assert result.name == "net_fp16"
    assert 0 < result.losses[0].max_abs < 0.01 * result.losses[0].scale


def test_check_tells_what_was_lost_and_notices_another_file(tmp_path: Path) -> None:
    result = run(source(tmp_path), tmp_path, precision="int8", calibration=str(samples(tmp_path)))
    summary, loss = describe(result.folder)
    assert summary.startswith("converted to int8: at most ")
    assert "16 samples of samples.npy: mean" in loss
    (result.folder / "model.onnx").write_bytes(onnx_models.cnn(1))
    assert describe(result.folder) == ("parity.json is not about this model.onnx, which has been replaced since",)
    assert describe(tmp_path) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "x.npy"}, "--calibration is for --precision fp16, bf16 and int8"),
        ({"precision": "int8", "format": "torchscript"}, "int8 is a form of ONNX files"),
        ({"precision": "int8", "calibration": "nowhere"}, "--calibration nowhere does not exist"),
        ({"precision": "int8", "calibration": str(TESTS / "integration")}, "has no files of samples"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(source(tmp_path), tmp_path, **options)
    assert not (tmp_path / "models").exists()


def test_bf16_without_openvino_says_how_to_get_it(tmp_path: Path) -> None:
    script = "import sys; sys.modules['openvino'] = None; from efserve.cli import main; main()"
    words = ["convert", str(source(tmp_path)), "--precision", "bf16", "--output", str(tmp_path / "models")]
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "which is not installed: pip install 'efserve[openvino]'; or write --format torchscript" in ended.stderr
