"""ONNX sources."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnx_models
from efserve.converter.convert import convert
from efserve.converter.job import ConvertJob, ConvertResult
from efserve.errors import ConversionFailed, EfserveError, UsageError
from efserve.tensors import TensorSpec
from onnx_models import FLOAT


def write(folder: Path, data: bytes, name: str = "net.onnx") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def run(source: str, repository: Path, **options: object) -> ConvertResult:
    steps: list[str] = []
    result = convert(ConvertJob(source, model_repository=repository, **options), steps.append)  # type: ignore[arg-type]  # options of a test
    assert steps[0].startswith("Load")
    return result


def fixed(nodes: list[onnx.NodeProto], batch: int, weights: list[onnx.TensorProto] | None = None) -> bytes:
    """x [batch, 4] -> y [batch, 4]."""
    return onnx_models.model(nodes, [("x", FLOAT, [batch, 4])], [("y", FLOAT, [batch, 4])], weights)


def test_free_batch_is_kept(tmp_path: Path) -> None:
    result = run(write(tmp_path, onnx_models.add_sub()), tmp_path / "models")
    assert result.max_batch_size == 8
    assert result.inputs == (TensorSpec("a", "FP32", (4,)), TensorSpec("b", "FP32", (4,)))
    assert [(d.format, d.batch, d.max_abs) for d in result.parity] == [("onnx", 1, 0.0), ("onnx", 3, 0.0)]
    written = sorted(path.name for path in (tmp_path / "models" / "net" / "1").iterdir())
    assert written == ["model.onnx", "parity.json"]
    assert "only model.onnx is written" in result.notes[0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_fixed_batch_is_made_free_where_the_graph_allows_it(tmp_path: Path, batch: int) -> None:
    source = write(tmp_path, fixed([helper.make_node("Softmax", ["x"], ["y"], axis=1)], batch))
    result = run(source, tmp_path / "models", format="onnx")
    assert result.max_batch_size == 8
    assert result.outputs == (TensorSpec("y", "FP32", (4,)),)
    assert [found.batch for found in result.parity] == [1, 3]
    assert result.notes == ()


def test_fixed_batch_stays_where_the_graph_depends_on_it(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2, 4]), "shape")
    source = write(tmp_path, fixed([helper.make_node("Reshape", ["x", "shape"], ["y"])], 2, [shape]))
    result = run(source, tmp_path / "models", format="onnx")
    assert result.max_batch_size == 0
    assert result.inputs == (TensorSpec("x", "FP32", (2, 4)),)
    assert len(result.parity) == 1
    assert "fixes its batch" in result.notes[0]


def test_batch_that_is_free_but_mixed_stays_fixed(tmp_path: Path) -> None:
    source = write(tmp_path, fixed([helper.make_node("Softmax", ["x"], ["y"], axis=0)], 2))
    assert run(source, tmp_path / "models").max_batch_size == 0


def test_max_batch_0_keeps_shapes_whole(tmp_path: Path) -> None:
    result = run(write(tmp_path, onnx_models.without_batch()), tmp_path / "models", max_batch=0)
    assert (result.max_batch_size, result.inputs[0].dims) == (0, (2, 3))


def test_free_sizes_are_tried_as_asked(tmp_path: Path) -> None:
    source = write(tmp_path, onnx_models.dynamic())
    assert run(source, tmp_path / "models", input_shape=("7",)).inputs[0].dims == (-1,)
    with pytest.raises(UsageError, match="'y:7' names no input of the file, which has input"):
        run(source, tmp_path / "models", input_shape=("y:7",), version=2)
    with pytest.raises(UsageError, match=r"does not fit input 'input' of the file, \[-1\]"):
        run(source, tmp_path / "models", input_shape=("7,7",), version=2)


def test_fp16_is_compared_with_fp32(tmp_path: Path) -> None:
    result = run(write(tmp_path, onnx_models.cnn()), tmp_path / "models", precision="fp16")
    assert result.inputs[0].datatype == result.outputs[0].datatype == "FP16"
    assert 0 < result.parity[0].max_rel < 0.02
    assert result.file_bytes["model.onnx"] < 3_000_000


def test_opset_is_changed(tmp_path: Path) -> None:
    run(write(tmp_path, onnx_models.add_sub()), tmp_path / "models", opset=20)
    assert onnx.load(str(tmp_path / "models/net/1/model.onnx")).opset_import[0].version == 20


def test_strings_pass(tmp_path: Path) -> None:
    result = run(write(tmp_path, onnx_models.string_identity()), tmp_path / "models")
    assert result.inputs[0].datatype == "BYTES"
    assert "TYPE_STRING" in (tmp_path / "models/net/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "torchscript"}, "an ONNX file cannot become TorchScript"),
        ({"weights": "none"}, "--weights and --dtype are for PyTorch models"),
        ({"name": ".hidden"}, "cannot be a model's name"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(write(tmp_path, onnx_models.identity()), tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", onnx_models.cnn()[:5000]])
def test_broken_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(EfserveError) as caught:
        run(write(tmp_path, data), tmp_path / "models")
    assert isinstance(caught.value, UsageError | ConversionFailed)
    assert "\n" not in str(caught.value)
    assert "net.onnx" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no.onnx' is no file"):
        convert(ConvertJob("no.onnx", model_repository=tmp_path), print)
