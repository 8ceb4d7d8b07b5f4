"""Tensors made up or read from files fit the model, or are refused with the reason."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.client.v2 import ModelInfo
from efserve.errors import UsageError
from efserve.loadtest.datafile import from_file
from efserve.loadtest.inputs import generated, parse_shapes, sample_dims
from efserve.tensors import DATATYPES, NUMPY_DTYPES, Array, TensorSpec, bfloat16


def model(*inputs: TensorSpec, max_batch_size: int = 8) -> ModelInfo:
    return ModelInfo("m", "", "", inputs, (), max_batch_size)


@given(st.sampled_from(DATATYPES), st.integers(1, 4), st.booleans(), st.one_of(st.none(), st.integers(0, 9)))
def test_generated_tensors_have_the_models_types_and_shapes(
    datatype: str, batch: int, batches: bool, seed: int | None
) -> None:
    dims = (-1, 3) if batches else (2, 3)
    target = model(TensorSpec("x", datatype, dims), max_batch_size=8 if batches else 0)
    rows = batch if batches else 1
    requests = generated(target, sample_dims(target, rows, {}), rows, seed, 5)
    assert len(requests) == (1 if seed is None else 8)
    for (array,) in requests:
        assert array.shape == ((rows, 3) if batches else (2, 3))
        assert array.dtype == NUMPY_DTYPES[datatype]
        if datatype == "BYTES":
            assert {len(value) for value in array.ravel().tolist()} == {0 if seed is None else 5}
        elif seed is None:
            assert not array.any()


def test_a_seed_makes_the_same_tensors_again() -> None:
    target = model(TensorSpec("x", "FP32", (-1, 4)))
    first, again, other = (generated(target, {"x": (4,)}, 2, seed, 1) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for (a,), (b,) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][0], other[0][0])
    assert not np.array_equal(first[0][0], first[1][0])


def test_large_tensors_are_few() -> None:
    assert len(generated(model(TensorSpec("x", "UINT8", (-1, 1 << 25))), {"x": (1 << 25,)}, 1, 0, 1)) == 2


def test_free_dimensions_have_to_be_given() -> None:
    target = model(TensorSpec("image", "FP32", (-1, 3, -1, -1)))
    with pytest.raises(UsageError, match=r"free dimensions \[3, -1, -1\]: give them with --shape image:3,N,N"):
        sample_dims(target, 1, {})
    assert sample_dims(target, 2, parse_shapes(["image:3,20,10"])) == {"image": (3, 20, 10)}
    for wrong in ("image:4,20,10", "image:3,20"):
        with pytest.raises(UsageError, match="does not fit the model"):
            sample_dims(target, 1, parse_shapes([wrong]))
    with pytest.raises(UsageError, match="no input 'picture'; it has image"):
        sample_dims(target, 1, {"picture": (1,)})


def test_names_of_inputs_may_hold_colons() -> None:
    assert parse_shapes(["a:0:3,4"]) == {"a:0": (3, 4)}


@pytest.mark.parametrize("text", ["x", "x:", ":3", "x:3,,4", "x:-1", "x:a"])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected NAME:DIM"):
        parse_shapes([text])


def test_a_model_that_does_not_batch_takes_no_batch() -> None:
    with pytest.raises(UsageError, match="--batch 2: model 'm' does not batch"):
        sample_dims(model(TensorSpec("x", "FP32", (4,)), max_batch_size=0), 2, {})


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    assert bfloat16(np.array([1.0, -2.0], np.float32)).tolist() == [0x3F80, 0xC000]


X = TensorSpec("x", "FP32", (-1, 2))


def npz(folder: Path, **arrays: Array) -> Path:
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)
    return path


@pytest.mark.parametrize(
    ("samples", "batch", "expected"),
    [
        (5, 1, [[0], [1], [2], [3], [4]]),
        (5, 2, [[0, 1], [2, 3]]),
        (3, 3, [[0, 1, 2]]),
        (2, 5, [[0, 1, 0, 1, 0]]),
    ],
)
def test_samples_of_a_file_fill_batches_in_turn(
    tmp_path: Path, samples: int, batch: int, expected: list[list[int]]
) -> None:
    rows = np.repeat(np.arange(samples, dtype=np.float64), 2).reshape(samples, 2)
    requests = from_file(npz(tmp_path, x=rows), model(X), batch, {})
    assert [array[:, 0].tolist() for (array,) in requests] == expected
    assert all(array.dtype == np.float32 for (array,) in requests)


def test_one_sample_needs_no_axis_of_samples(tmp_path: Path) -> None:
    ((array,),) = from_file(npz(tmp_path, x=np.array([1, 2], np.float32)), model(X), 1, {})
    assert array.tolist() == [[1, 2]]
    whole = model(TensorSpec("x", "FP32", (2,)), max_batch_size=0)
    ((array,),) = from_file(npz(tmp_path, x=np.array([1, 2], np.float32)), whole, 1, {})
    assert array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros((1, 2))}, "no array 'x'; it has y"),
        ({"x": np.zeros((4, 3))}, r"has shape \[3\], the model takes \[2\]"),
        ({"x": np.array([["a", "b"]])}, "the model takes FP32"),
        ({"x": np.zeros((0, 2))}, "at least one; found x 0"),
        ({"x": np.zeros((1, 2), np.complex64)}, "x' is complex64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Array], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        from_file(npz(tmp_path, **arrays), model(X), 1, {})


def test_inputs_need_equally_many_samples(tmp_path: Path) -> None:
    two = model(X, TensorSpec("y", "INT8", (-1, 1)))
    path = npz(tmp_path, x=np.zeros((2, 2)), y=np.zeros((3, 1), np.int64))
    with pytest.raises(UsageError, match="found x 2, y 3"):
        from_file(path, two, 1, {})


def test_integers_are_never_cut(tmp_path: Path) -> None:
    target = model(TensorSpec("x", "UINT8", (-1, 1)))
    ((array,),) = from_file(npz(tmp_path, x=np.array([[255]])), target, 1, {})
    assert array.dtype == np.uint8
    with pytest.raises(UsageError, match="values that UINT8 cannot hold"):
        from_file(npz(tmp_path, x=np.array([[256]])), target, 1, {})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("x.npz", "x.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="--input"):
            from_file(tmp_path / name, model(X), 1, {})


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected random, zero, FILE\.npz, FILE\.json or a folder"):
        from_file(Path("ones"), model(X), 1, {})
    with pytest.raises(UsageError, match="cannot read it"):
        from_file(tmp_path / "none.npz", model(X), 1, {})
    with (tmp_path / "one.npz").open("wb") as stream:
        np.save(stream, np.zeros(2))
    with pytest.raises(UsageError, match="it is a single array"):
        from_file(tmp_path / "one.npz", model(X), 1, {})


def json_file(folder: Path, data: object) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps({"data": data}))
    return path


def test_the_json_form_of_perf_analyzer(tmp_path: Path) -> None:
    data = [
        {"x": [1, 2]},
        {"x": [[3, 4]]},
        {"x": {"content": [5, 6], "shape": [2]}},
        {"x": {"b64": "AADgQAAAAEE="}},
    ]
    ((array,),) = from_file(json_file(tmp_path, data), model(X), 4, {})
    assert array.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_strings_and_free_dimensions_in_json(tmp_path: Path) -> None:
    target = model(TensorSpec("s", "BYTES", (-1, -1)))
    path = json_file(tmp_path, [{"s": ["a", "b", "c"]}, {"s": {"content": ["d"], "shape": [1]}}])
    assert [array.tolist() for (array,) in from_file(path, target, 1, {})] == [[[b"a", b"b", b"c"]], [[b"d"]]]
    with pytest.raises(UsageError, match="differ in shape"):
        from_file(path, target, 2, {})
    matrix = model(TensorSpec("x", "INT32", (-1, -1, -1)))
    ((array,),) = from_file(json_file(tmp_path, [{"x": [1, 2, 3, 4]}]), matrix, 1, {"x": (2, 2)})
    assert array.tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{}], "entry 0 of \"data\" has no 'x'"),
        ([{"x": 5}], "expected a list"),
        ([{"x": [1, 2, 3]}], "3 values for shape"),
        ([{"x": ["a", "b"]}], "the model takes FP32"),
        ([{"x": {"content": [1, 2], "shape": [1, 2]}}], r"has shape \[1, 2\]"),
        ([{"x": {"b64": "!!"}}], "--input"),
        ([{"x": [[1], [2, 3]]}], "--input"),
        ([], "at least one"),
        ({}, "--input"),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        from_file(json_file(tmp_path, data), model(X), 1, {})
