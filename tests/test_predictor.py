"""Files as rows, rows in batches, scores as classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_models
from efserve.errors import EfserveError, LoadFailed, NotFound, UsageError
from efserve.model_config import ModelConfig
from efserve.predictor.model import class_output, top_classes
from efserve.predictor.predict import InferJob, predict
from efserve.samples import Sample, batches, read_folder, read_samples
from efserve.tensors import TensorSpec

ONE = ModelConfig("net", max_batch_size=4, inputs=(TensorSpec("x", "FP32", (2, 2)),))
TWO = ModelConfig("pair", max_batch_size=4, inputs=(TensorSpec("a", "FP32", (2,)), TensorSpec("t", "BYTES", (1,))))
WHOLE = ModelConfig("whole", inputs=(TensorSpec("x", "INT64", (-1, 2)),))


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, np.asarray(content))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def values(samples: list[Sample]) -> list[Any]:
    return [[tensor.tolist() for tensor in sample.tensors] for sample in samples]


@pytest.mark.parametrize("name", ["rows.npy", "rows.json"])
def test_batch_dimension_is_optional(tmp_path: Path, name: str) -> None:
    row = [[1.0, 2.0], [3.0, 4.0]]
    for content, count in ((row, 1), ([row], 1), ([row, row, row], 3)):
        samples = read_samples(write(tmp_path, name, content), ONE)
        assert values(samples) == [[row]] * count
    assert [Path(sample.name).name for sample in samples] == [f"{name}#{index}" for index in range(3)]


def test_v2_request_as_a_file(tmp_path: Path) -> None:
    inputs = [{"name": "t", "data": ["one", "two"], "shape": [2, 1]}, {"name": "a", "data": [[1, 2], [3, 4]]}]
    samples = read_samples(write(tmp_path, "request.json", {"inputs": inputs}), TWO)
    assert values(samples) == [[[1.0, 2.0], [b"one"]], [[3.0, 4.0], [b"two"]]]


def test_model_that_does_not_batch_takes_whole_arrays(tmp_path: Path) -> None:
    (sample,) = read_samples(write(tmp_path, "x.npy", [[1, 2], [3, 4], [5, 6]]), WHOLE)
    assert sample.tensors[0].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "content", "config", "message"),
    [
        ("x.npy", [1.0, 2.0], ONE, r"does not fit model 'net': input 'x' takes \[2, 2\], got \[2\]"),
        ("x.npy", np.zeros((5, 3, 2)), ONE, "does not fit"),
        ("x.npy", [[1.5, 2.5]], WHOLE, "holds float64 values, input 'x' takes INT64"),
        ("x.npy", [1.0], TWO, "model 'pair' has inputs a, t"),
        ("x.json", "{", ONE, "cannot be read as JSON"),
        ("x.json", "[" * 100_000 + "]" * 100_000, ONE, "cannot be read as JSON"),
        ("x.json", [[1, 2], [3]], ONE, "nested unevenly"),
        ("x.json", {"a": 1}, ONE, "expected a list of values, or"),
        ("x.json", {"inputs": [{"name": "y", "data": []}]}, ONE, "has inputs y; model 'net' takes x"),
        ("x.json", {"inputs": [{"name": "x", "data": [1, 2], "shape": [3]}]}, ONE, r"has 2 values for shape \[3\]"),
        ("x.csv", "1,2", ONE, "has an unknown type"),
    ],
)
def test_file_that_does_not_fit_is_one_sentence(
    tmp_path: Path, name: str, content: object, config: ModelConfig, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_samples(write(tmp_path, name, content), config)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.npy is no file"):
        read_samples(tmp_path / "no.npy", ONE)
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UsageError, match=r"cannot be read as \.npy"):
        read_samples(tmp_path / "x.npy", ONE)


@given(st.lists(st.integers(1, 3), max_size=20), st.integers(1, 5))
def test_batches_keep_the_order_and_never_mix_shapes(sizes: list[int], max_rows: int) -> None:
    samples = [Sample(str(index), (np.zeros(size),)) for index, size in enumerate(sizes)]
    groups = list(batches(samples, max_rows))
    assert [sample for group in groups for sample in group] == samples
    assert all(0 < len(group) <= max_rows for group in groups)
    assert all(len({sample.tensors[0].shape for sample in group}) == 1 for group in groups)


def test_top_classes_are_sorted_and_labelled() -> None:
    first, second = top_classes(np.array([[0.1, 0.7, 0.2], [5, 5, 1]]), ("a", "b"), 2)
    assert [(c.index, c.label, c.score) for c in first] == [(1, "b", 0.7), (2, "", 0.2)]
    assert [c.index for c in second] == [0, 1]
    assert len(top_classes(np.zeros((1, 3)), (), 9)[0]) == 3


def test_output_of_classes_is_the_labelled_one_or_the_first_list() -> None:
    outputs = tuple(
        TensorSpec(*parts) for parts in (("box", "FP32", (2, 2)), ("one", "FP32", (1,)), ("a", "FP32", (9,)))
    )
    config = ModelConfig("m", max_batch_size=4, outputs=(*outputs, TensorSpec("b", "FP32", (9,))))
    assert class_output(config) == outputs[2]
    config.label_filenames["b"] = "labels.txt"
    assert class_output(config) == config.outputs[3]
    assert class_output(ModelConfig("m", outputs=outputs[:2])) is None


def test_model_without_classes_answers_its_outputs(tmp_path: Path) -> None:
    onnx_models.save(tmp_path, "whole", onnx_models.without_batch())
    file = write(tmp_path, "x.json", [[1, 2, 3], [4, 5, 6]])
    (answer,) = predict(InferJob("whole", (file,), model_repository=tmp_path))
    assert answer.classes == ()
    assert (answer.outputs[0].name, answer.outputs[0].shape) == ("y", (3, 2))
    assert answer.outputs[0].first == (1.0, 4.0, 2.0, 5.0, 3.0, 6.0)


def test_more_files_than_a_batch_takes(tmp_path: Path) -> None:
    onnx_models.save(tmp_path, "net", onnx_models.identity(4))
    rows = np.eye(4, dtype=np.float32)[[3, 1, 0, 2, 2, 0, 1, 3, 3]]
    answers = predict(InferJob("net", (write(tmp_path, "x.npy", rows),), model_repository=tmp_path, top=1))
    assert [answer.classes[0].index for answer in answers] == [3, 1, 0, 2, 2, 0, 1, 3, 3]


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ({"model": "nix"}, NotFound, "model 'nix' is not in .*; it has: bad, net"),
        ({"model": "net", "version": "7"}, NotFound, "model 'net' has no version 7 in .*; it has 1"),
        ({"model": "bad"}, LoadFailed, "model 'bad' cannot be loaded"),
        ({"model": "net", "engine": "torchscript"}, EfserveError, "has no model.pt"),
        ({"model": "net", "url": "ftp://x"}, UsageError, "expected http"),
        ({"model": "net", "url": "http://127.0.0.1:1"}, EfserveError, "cannot reach a server"),
    ],
)
def test_model_that_is_not_there(tmp_path: Path, job: dict[str, Any], error: type[EfserveError], message: str) -> None:
    onnx_models.save(tmp_path, "net", onnx_models.identity(4))
    onnx_models.save(tmp_path, "bad", b"garbage")
    file = write(tmp_path, "x.json", [1, 2, 3, 4])
    with pytest.raises(error, match=message):
        predict(InferJob(**job, files=(file,), model_repository=tmp_path))


def test_a_folder_has_the_rows_of_its_images_and_arrays(tmp_path: Path) -> None:
    config = ModelConfig("m", max_batch_size=4, inputs=(TensorSpec("x", "FP32", (2,)),))
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    np.savez(tmp_path / "deep" / "b.npz", x=np.array([7, 8], np.float32))
    (tmp_path / "labels.json").write_text('{"a.npy": "a label"}')
    rows = [sample.tensors[0].tolist() for sample in read_folder(tmp_path, config, 10)]
    assert rows == [[0, 1], [2, 3], [4, 5], [7, 8]]
    assert len(read_folder(tmp_path, config, 2)) == 2
    (tmp_path / "values").mkdir()
    (tmp_path / "values" / "c.json").write_text("[9, 10]")
    assert [sample.tensors[0].tolist() for sample in read_folder(tmp_path / "values", config, 2)] == [[9, 10]]
    np.savez(tmp_path / "wrong.npz", y=np.zeros(2, np.float32))
    with pytest.raises(UsageError, match="has arrays y; model 'm' takes x"):
        read_samples(tmp_path / "wrong.npz", config)
