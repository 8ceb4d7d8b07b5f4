"""PyTorch sources: real conversions of small modules, and the ones that must be refused."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from efserve.converter.convert import convert
from efserve.converter.job import ConvertJob, ConvertResult
from efserve.converter.torch_model import quiet
from efserve.errors import ConfigError, ConversionFailed, EfserveError, UsageError
from efserve.imaging import from_parameters
from efserve.pbtxt import read_config
from efserve.tensors import TensorSpec
from torch_models import Linear

LINEAR = ConvertJob("torch_models:Linear", input_shape=("4",))


def run(repository: Path, source: str, **options: Any) -> ConvertResult:
    name = source if ":" in source or "/" in source or source.startswith("resnet") else f"torch_models:{source}"
    return convert(ConvertJob(name, model_repository=repository, **options), lambda _: None)


def test_both_files_answer_as_the_source_at_any_batch(tmp_path: Path) -> None:
    result = run(tmp_path, "Linear", input_shape=("4",))
    assert {(found.format, found.batch) for found in result.parity} == {
        ("onnx", 1),
        ("onnx", 3),
        ("torchscript", 1),
        ("torchscript", 3),
    }
    rows = torch.randn(7, 4)
    expected = Linear()(rows).numpy(force=True)
    session = onnxruntime.InferenceSession(str(result.folder / "model.onnx"))
    assert np.allclose(session.run(["output"], {"input": rows.numpy()})[0], expected, atol=1e-6)
    config = read_config(tmp_path / "Linear" / "config.pbtxt", "Linear")
    assert config.inputs == (TensorSpec("input", "FP32", (4,)),)
    assert config.outputs == (TensorSpec("output", "FP32", (3,)),)
    assert config.max_batch_size == 8
    assert config.dynamic_batching is not None


def test_dict_outputs_keep_their_names(tmp_path: Path) -> None:
    result = run(tmp_path, "TwoInputs", input_shape=("a:3", "ids:3"), dtype=("ids:INT64",))
    assert result.outputs == (
        TensorSpec("sum", "FP32", (3,)),
        TensorSpec("mean", "FP32", ()),
        TensorSpec("twice", "INT64", (3,)),
    )


def test_list_outputs_are_numbered(tmp_path: Path) -> None:
    result = run(tmp_path, "Pair", input_shape=("5",), dtype=("INT64",), precision="fp16")
    assert result.outputs == (TensorSpec("output_0", "FP16", (4,)), TensorSpec("output_1", "INT64", (5,)))
    assert 0 < result.parity[0].max_abs < 1e-2


def test_operator_of_the_newer_exporter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "Fourier", input_shape=("8",), format="onnx").outputs[0].dims == (5,)
    assert capfd.readouterr().out == ""


def test_whole_shapes_without_batching(tmp_path: Path) -> None:
    result = run(tmp_path, "Flattens", input_shape=("2,4",), max_batch=0)
    assert (result.max_batch_size, result.outputs[0].dims) == (0, (1, 8))
    assert read_config(tmp_path / "Flattens" / "config.pbtxt", "Flattens").dynamic_batching is None


def test_torchscript_file_is_a_source(tmp_path: Path) -> None:
    first = run(tmp_path, "scripted", input_shape=("4",), format="torchscript")
    again = run(tmp_path, str(first.folder / "model.pt"), input_shape=("x:4",), format="torchscript", name="again")
    assert again.inputs == (TensorSpec("x", "FP32", (4,)),)
    assert all(found.max_abs == 0 for found in (*first.parity, *again.parity))


def test_files_hold_no_paths_of_the_machine(tmp_path: Path) -> None:
    folder = run(tmp_path, "Linear", input_shape=("4",)).folder
    for file in ("model.pt", "model.onnx"):
        data = (folder / file).read_bytes()
        assert str(Path(__file__).parent).encode() not in data
        assert b"site-packages" not in data
    with zipfile.ZipFile(folder / "model.pt") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"model"}
        assert not [name for name in archive.namelist() if "debug" in name]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("FixedBatch", {}, r"model.onnx differs from its source at batch 1 by up to .* nothing was written"),
        ("Branch", {"format": "torchscript"}, "model.pt differs from its source at batch 1"),
        ("scripted", {"input_shape": ("4", "4")}, "the model's forward failed at batch 1"),
        ("Flattens", {}, r"shape \[1, 12\] at batch 3: its first dimension is not the batch"),
        ("Raises", {}, "forward failed at batch 1: ValueError: the moon is in the wrong house"),
        ("AnswersText", {}, "forward returns str as 'output'"),
        ("TwoInputs", {"input_shape": ("sum:3", "ids:3")}, "'sum' names an input and an output"),
        ("fails", {}, r"fails\(\) failed: RuntimeError: no licence"),
        ("number", {}, r"number\(\) returns int; expected a torch.nn.Module"),
        ("missing", {}, "has no callable 'missing'"),
        ("nothing_here:at_all", {}, "module 'nothing_here' of SOURCE .* cannot be imported"),
        ("Linear", {"input_shape": ()}, "does not tell its input shapes"),
        ("Linear", {"dtype": ("UINT64",)}, "is not one of PyTorch's"),
        ("./nothing.pt", {}, "is no file"),
        ("resnet81", {}, "is no torchvision classification model; did you mean resnet"),
        (str(Path(__file__).parent / "torch_models.py"), {}, "is no TorchScript file"),
    ],
)
def test_refused_and_nothing_is_left(tmp_path: Path, source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EfserveError, match=message):
        run(tmp_path / "models", source, **({"input_shape": ("4",)} | options))
    assert not (tmp_path / "models").exists()


def test_version_is_replaced_by_force_alone(tmp_path: Path) -> None:
    job = replace(LINEAR, model_repository=tmp_path)
    first = convert(job, lambda _: None).folder / "model.onnx"
    before = first.stat().st_ino
    with pytest.raises(UsageError, match=r"Linear/1 exists; choose another --version or --name, or .* --force"):
        convert(job, lambda _: None)
    assert first.stat().st_ino == before
    convert(replace(job, force=True, format="onnx"), lambda _: None)
    assert sorted(path.name for path in first.parent.iterdir()) == ["model.onnx", "parity.json"]
    convert(replace(job, version=2), lambda _: None)
    assert sorted(path.name for path in (tmp_path / "Linear").iterdir()) == ["1", "2", "config.pbtxt"]


def test_config_that_fits_is_kept_and_another_needs_force(tmp_path: Path) -> None:
    job = replace(LINEAR, model_repository=tmp_path)
    convert(job, lambda _: None)
    path = tmp_path / "Linear" / "config.pbtxt"
    path.write_text(path.read_text() + "instance_group { count: 2 }\n")
    edited = path.read_text()
    assert "it is kept" in convert(replace(job, version=2), lambda _: None).notes[0]
    assert path.read_text() == edited
    other = replace(job, version=3, precision="fp16", name="Linear")
    with pytest.raises(ConfigError, match="describes other tensors than this model's"):
        convert(other, lambda _: None)
    assert not (tmp_path / "Linear" / "3").exists()
    convert(replace(other, force=True), lambda _: None)
    assert "TYPE_FP16" in path.read_text()


def test_comparison_of_zeros_is_remarked(tmp_path: Path) -> None:
    torch.save({"linear.weight": torch.zeros(3, 4), "linear.bias": torch.zeros(3)}, tmp_path / "zeros.pth")
    result = run(tmp_path, "Linear", input_shape=("4",), weights=str(tmp_path / "zeros.pth"))
    assert "nothing but zeros" in result.notes[0]


def test_weights_file_is_loaded_or_told_apart(tmp_path: Path) -> None:
    wanted, other = tmp_path / "wanted.pth", tmp_path / "other.pth"
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in Linear().state_dict().items()}
    torch.save({"state_dict": state}, wanted)
    torch.save({"linear.weight": torch.ones(3, 5), "head.bias": torch.ones(3)}, other)
    result = run(tmp_path, "Linear", input_shape=("4",), weights=str(wanted))
    session = onnxruntime.InferenceSession(str(result.folder / "model.onnx"))
    assert session.run(None, {"input": np.ones((1, 4), np.float32)})[0].tolist() == [[2.5, 2.5, 2.5]]
    with pytest.raises(ConversionFailed) as caught:
        run(tmp_path, "Linear", input_shape=("4",), weights=str(other), version=2)
    assert str(caught.value).endswith(
        "it lacks linear.bias; the model does not know head.bias; of another shape is linear.weight"
    )


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02cos\nsystem\nq\x00."])
def test_weights_file_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as tensors alone"):
        run(tmp_path, "Linear", input_shape=("4",), weights=str(path))
    with pytest.raises(UsageError, match="is no file; expected default, none, or a file"):
        run(tmp_path, "Linear", input_shape=("4",), weights="nothing.pth")


def test_torchvision_model_brings_labels_and_preprocessing(tmp_path: Path) -> None:
    result = run(tmp_path, "resnet18", weights="none", input_shape=("3,64,64",))
    assert result.outputs == (TensorSpec("output", "FP32", (1000,)),)
    assert "random" in result.notes[0]
    config = read_config(tmp_path / "resnet18" / "config.pbtxt", "resnet18")
    assert config.label_filenames == {"output": "labels.txt"}
    labels = (tmp_path / "resnet18" / "labels.txt").read_text().splitlines()
    assert (len(labels), labels[0]) == (1000, "tench")
    preprocess = from_parameters(config.parameters)
    assert (preprocess.resize, preprocess.mean) == (73, (0.485, 0.456, 0.406))


def test_torchvision_weights_file_of_other_classes(tmp_path: Path) -> None:
    job: dict[str, Any] = {"input_shape": ("3,64,64",), "format": "torchscript"}
    source = run(tmp_path, "resnet18", weights="none", name="source", **job)
    with quiet():
        state = torch.jit.load(str(source.folder / "model.pt")).state_dict()  # type: ignore[no-untyped-call]  # torch
    state |= {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}
    torch.save(state, tmp_path / "five.pth")
    result = run(tmp_path, "resnet18", weights=str(tmp_path / "five.pth"), **job)
    assert result.outputs[0].dims == (5,)
    assert not (tmp_path / "resnet18" / "labels.txt").exists()
