"""Data within the JSON of an inference request: every datatype, what does not fit, and in which order it is judged."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.codec.v2_infer import decode
from efserve.errors import InvalidRequest
from efserve.tensors import NUMPY_DTYPES, encode_bytes
from fakes import FakeModel, identity_config
from infer_requests import body_of, error_of, json_input, one_input, two_inputs

NUMBERS = sorted(set(NUMPY_DTYPES) - {"BYTES", "BF16", "FP16"})


@pytest.mark.parametrize(
    ("datatype", "data", "message"),
    [
        ("UINT8", [1, 300], "inference input 'input' for model 'identity': 300 is out of range for UINT8 (0 to 255)"),
        ("INT64", [2**63, 0], f"{2**63} is out of range for INT64"),
        ("INT32", [1.0, 2], "1.0 is no INT32 value"),
        ("INT32", [True, 2], "true is no INT32 value"),
        ("INT32", [None, 2], "null is no INT32 value"),
        ("FP32", ["a", 2], '"a" is no FP32 value'),
        ("FP32", [1e39, 2], "1e39 is out of range for FP32"),
        ("FP64", [10**400, 2], "out of range"),
        ("BOOL", [2, 1], "2 is no BOOL; expected true, false, 0 or 1"),
        ("BOOL", [1.0, 1], "1.0 is no BOOL value"),
        ("BOOL", [[], {}], "data mixes lists and values"),
        ("BYTES", [1, "a"], "1 is no BYTES value"),
        ("FP16", [1, 2], "receiving FP16 data via JSON is not supported. Please use the binary data format for input"),
        ("BF16", [1, 2], "receiving BF16 data via JSON is not supported"),
        ("FP32", [1, 2, 3], "Unable to parse 'data': Shape does not match true shape of 'data' field"),
        ("FP32", [[1, 2], 3], "data mixes lists and values at one level"),
        ("FP32", {"a": 1}, "Failed to parse 'data' field: shape does not match true shape"),
    ],
)
def test_json_values_that_do_not_fit(datatype: str, data: object, message: str) -> None:
    model, head = json_input(datatype, data)
    assert message in error_of(model, head)


@pytest.mark.parametrize(
    ("shape", "status", "message"),
    [
        ((2, -5), 500, "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ((2**4, 2**60 + 2), 400, "causes total element count to exceed maximum size of 9223372036854775807"),
        ((2**2, 2**60 + 2), 400, "byte size overflow for input 'input': element count (4611686018427387912)"),
    ],
)
def test_shapes_beyond_all_sizes(shape: tuple[int, ...], status: int, message: str) -> None:
    model, head = json_input("FP32", [1.0], shape)
    with pytest.raises(InvalidRequest) as caught:
        decode(model, *body_of(head))
    assert message in str(caught.value)
    assert caught.value.http_status == status


def test_json_data_is_nested_up_to_a_limit() -> None:
    def nested(levels: int) -> list[Any]:
        data: list[Any] = [1, 2]
        for _ in range(levels - 1):
            data = [data]
        return data

    model, head = json_input("INT32", nested(99))
    assert bytes(decode(model, *body_of(head))[1][0]) == np.array([1, 2], np.int32).tobytes()
    model, head = json_input("INT32", nested(100))
    assert "JSON nesting depth exceeds maximum allowed limit (100)" in error_of(model, head)


def test_json_data_is_judged_before_the_rest_of_the_request() -> None:
    short = {"name": "A", "shape": [1, 2], "datatype": "INT32", "data": [1]}
    assert error_of(FakeModel(two_inputs()), {"inputs": [short]}).startswith("Failed to parse 'data' field")


def test_outputs_are_judged_before_inputs() -> None:
    head = {"inputs": [one_input(shape=[1, 15])], "outputs": [{"name": "no"}]}
    assert error_of(FakeModel(identity_config()), head).startswith("unexpected inference output 'no' for model")


def test_the_last_input_is_judged_first() -> None:
    wrong = [{"name": name, "shape": [1, 1], "datatype": "FP64", "data": [1]} for name in ("A", "B")]
    assert "inference input 'B' data-type" in error_of(FakeModel(two_inputs()), {"inputs": wrong})


def test_binary_data_output_is_for_outputs_that_are_not_listed() -> None:
    model, head = json_input("INT32", [1, 2])
    assert decode(model, *body_of(head))[0].all_binary
    template = decode(model, *body_of(head | {"outputs": [{"name": "output"}]}))[0]
    assert not template.has_tail


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("nested", [False, True])
def test_json_numbers_of_every_datatype(datatype: str, nested: bool) -> None:
    dtype: np.dtype[Any] = NUMPY_DTYPES[datatype]
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    model, head = json_input(datatype, (array if nested else array.ravel()).tolist(), (2, 2))
    template, tensors, _ = decode(model, *body_of(head))
    assert (bytes(tensors[0]), template.rows) == (array.tobytes(), 2)
    limits = None if dtype.kind in "fb" else np.iinfo(dtype)
    if limits:
        model, head = json_input(datatype, [limits.min, limits.max])
        assert bytes(decode(model, *body_of(head))[1][0]) == np.array([limits.min, limits.max], dtype).tobytes()


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_json_strings_become_wire_strings(texts: list[str]) -> None:
    model, head = json_input("BYTES", texts, (1, len(texts)))
    assert bytes(decode(model, *body_of(head))[1][0]) == encode_bytes([text.encode() for text in texts])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_json_floats_arrive_exactly(values: list[float]) -> None:
    model, head = json_input("FP32", values, (1, len(values)))
    assert bytes(decode(model, *body_of(head))[1][0]) == np.array(values, np.float32).tobytes()
