"""The words of --input-shape and --dtype."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.converter.tensor_options import parse_inputs, parse_shape
from efserve.errors import UsageError
from efserve.tensors import TensorSpec

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:/]{0,8}", fullmatch=True)


@given(NAMES, st.lists(st.integers(1, 10_000), max_size=5))
def test_named_shape_round_trips(name: str, dims: list[int]) -> None:
    assert parse_shape(f"{name}:{','.join(map(str, dims))}") == (name, tuple(dims))


def test_names_and_datatypes_have_defaults() -> None:
    assert parse_inputs(["3,224,224"], []) == (TensorSpec("input", "FP32", (3, 224, 224)),)
    assert [spec.name for spec in parse_inputs(["3", "4"], [])] == ["input_0", "input_1"]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([], ["FP32", "FP32"]),
        (["int64"], ["INT64", "INT64"]),
        (["INT64", "bool"], ["INT64", "BOOL"]),
        (["b:float16"], ["FP32", "FP16"]),
    ],
)
def test_datatypes(dtypes: list[str], expected: list[str]) -> None:
    assert [spec.datatype for spec in parse_inputs(["a:3", "b:4"], dtypes)] == expected


@pytest.mark.parametrize("text", ["", "3,x", "3,-1", "3,,4", "0", "a:b", "²"])
def test_bad_shape_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="--input-shape"):
        parse_inputs([text], [])


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        (["FP33"], "'FP33' is not known; expected one of BOOL"),
        (["c:FP32"], "names no input; the inputs are a, b"),
        (["FP32", "FP32", "FP32"], "given 3 times, but there are 2 inputs"),
    ],
)
def test_bad_dtype_is_named(dtypes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_inputs(["a:1", "b:1"], dtypes)


def test_one_name_for_two_inputs_is_refused() -> None:
    with pytest.raises(UsageError, match="twice: a, a"):
        parse_inputs(["a:1", "a:2"], [])
