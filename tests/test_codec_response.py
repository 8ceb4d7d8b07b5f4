"""Inference answers: golden bytes, JSON values of every datatype, classification."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from efserve.codec.v2_infer import OutputPlan, Template, decode
from efserve.codec.v2_response import MAX_CLASSES, classify, render, with_id
from efserve.errors import InvalidRequest
from efserve.inference import OutputTensor
from efserve.tensors import NUMPY_DTYPES, TensorSpec, encode_bytes
from fakes import FakeModel, identity_config


def template_for(datatype: str, dims: tuple[int, ...], asked: dict[str, Any] | None = None, *labels: str) -> Template:
    """The template of a request for one output, given as wire bytes of a model with the same input."""
    model = FakeModel(identity_config(datatype=datatype, dims=dims), labels={"output": labels})
    head: dict[str, Any] = {
        "inputs": [{"name": "input", "shape": [1, *dims], "datatype": datatype, "parameters": {"binary_data_size": 0}}]
    }
    size = NUMPY_DTYPES[datatype].itemsize * int(np.prod(dims)) if datatype != "BYTES" else 4 * int(np.prod(dims))
    head["inputs"][0]["parameters"]["binary_data_size"] = size
    if asked is not None:
        head["outputs"] = [{"name": "output", "parameters": asked}]
    text = json.dumps(head).encode()
    return decode(model, memoryview(text + bytes(size)), len(text))[0]


def test_golden_binary_answer() -> None:
    template = template_for("FP32", (2,), {"binary_data": True})
    data = np.array([[1.5, -2.0]], np.float32).tobytes()
    text, tail = render(template, (OutputTensor((1, 2), data),))
    assert text == (
        b'{"model_name":"identity","model_version":"1","outputs":[{"name":"output","datatype":"FP32","shape":[1,2],'
        b'"parameters":{"binary_data_size":8}}]}'
    )
    assert tail == [data]
    assert with_id(text, b"42").startswith(b'{"id":"42","model_name":"identity"')
    assert with_id(text, b"") == text


def test_golden_json_answer() -> None:
    template = template_for("FP32", (4,))
    data = np.array([[1.5, np.nan, np.inf, -np.inf]], np.float32).tobytes()
    text, tail = render(template, (OutputTensor((1, 4), data),))
    assert text == (
        b'{"model_name":"identity","model_version":"1","outputs":[{"name":"output","datatype":"FP32","shape":[1,4],'
        b'"data":[1.5,null,null,null]}]}'
    )
    assert tail == []


@pytest.mark.parametrize("datatype", sorted(set(NUMPY_DTYPES) - {"BYTES", "FP16", "BF16"}))
def test_json_values_round_trip(datatype: str) -> None:
    array = np.array([[0, 1, 1]]).astype(NUMPY_DTYPES[datatype])
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        array[0, 1:] = limits.min, limits.max
    text, _ = render(template_for(datatype, (3,)), (OutputTensor((1, 3), array.tobytes()),))
    values = json.loads(text)["outputs"][0]["data"]
    assert np.array_equal(np.array(values, array.dtype), array.ravel())
    assert isinstance(values[0], bool) is (datatype == "BOOL")


@given(arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_json_floats_keep_every_bit(array: Any) -> None:
    text, _ = render(template_for("FP32", (5,)), (OutputTensor((1, 5), array.tobytes()),))
    assert np.array(json.loads(text)["outputs"][0]["data"], np.float32).tobytes() == array.tobytes()


def test_strings_as_json_and_their_limits() -> None:
    template = template_for("BYTES", (2,))
    text, _ = render(template, (OutputTensor((1, 2), encode_bytes(["é".encode(), b'"'])),))
    assert json.loads(text)["outputs"][0] == {
        "name": "output",
        "datatype": "BYTES",
        "shape": [1, 2],
        "data": ["é", '"'],
    }
    with pytest.raises(InvalidRequest, match="output 'output' holds a string that is not UTF-8"):
        render(template, (OutputTensor((1, 2), encode_bytes([b"\xff", b""])),))


def classes(datatype: str, values: Any, count: int, *labels: str, batches: bool = True) -> tuple[Any, list[bytes]]:
    array = np.array(values, NUMPY_DTYPES[datatype])
    plan = OutputPlan(0, TensorSpec("output", datatype, (-1,)), False, count, labels)
    return classify(plan, OutputTensor(array.shape, array.tobytes()), batches=batches)


def test_classification_by_row() -> None:
    shape, elements = classes("FP32", [[0.1, 0.7, 0.2], [3, 1, 2]], 2, "cat", "dog")
    assert shape == (2, 2)
    assert elements == [b"0.700000:1:dog", b"0.200000:2", b"3.000000:0:cat", b"2.000000:2"]


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("UINT8", [3, 255, 0], [b"255:1", b"3:0", b"0:2"]),
        ("INT8", [-128, 127, 0], [b"127:1", b"0:2", b"-128:0"]),
        ("INT64", [-(2**63), 2**63 - 1, 0], [b"9223372036854775807:1", b"0:2", b"-9223372036854775808:0"]),
        ("UINT64", [2**64 - 1, 0, 2**63], [b"18446744073709551615:0", b"9223372036854775808:2", b"0:1"]),
        ("BOOL", [False, True, False], [b"1:1", b"0:0", b"0:2"]),
        ("FP16", [1, 3, 2], [b"3.000000:1", b"2.000000:2", b"1.000000:0"]),
        ("FP64", [1, np.nan, 2], [b"2.000000:2", b"1.000000:0", b"nan:1"]),
        ("BF16", [0x3F80, 0x4000, 0xBF80], [b"2.000000:1", b"1.000000:0", b"-1.000000:2"]),
    ],
)
def test_classification_of_every_kind_of_number(datatype: str, values: Any, expected: list[bytes]) -> None:
    assert classes(datatype, values, 10, batches=False) == ((3,), expected)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="classification output tensor too large"):
        classes("UINT8", np.zeros((1, MAX_CLASSES + 1), np.uint8), 5)


def test_classification_in_an_answer() -> None:
    template = template_for("FP32", (3,), {"classification": 1}, "a", "b", "c")
    output = (OutputTensor((1, 3), np.array([[1, 5, 2]], np.float32).tobytes()),)
    text, tail = render(template, output)
    assert (json.loads(text)["outputs"][0]["data"], tail) == (["5.000000:1:b"], [])
    template = template_for("FP32", (3,), {"classification": 1, "binary_data": True}, "a", "b", "c")
    text, tail = render(template, output)
    assert tail == [encode_bytes([b"5.000000:1:b"])]
    assert json.loads(text)["outputs"][0] == {
        "name": "output",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": 16},
    }
