"""Random inputs and the distance between two answers."""

import numpy as np
import pytest

from efserve.converter.parity import Case, check, compare, in_precision, random_inputs
from efserve.errors import ConversionFailed
from efserve.precision import Precision
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

SPECS = tuple(
    TensorSpec(name.lower(), name, (3, 2)) for name in ("FP32", "FP16", "INT64", "UINT8", "BOOL", "FP64", "BYTES")
)


def array(dtype: str, values: list[float]) -> Array:
    return np.array(values, dtype)


def case(*outputs: Array) -> Case:
    return Case(3, (), outputs)


def test_random_inputs_are_the_same_at_every_call_and_others_at_every_batch() -> None:
    first, again, other = (random_inputs(SPECS, batch) for batch in (3, 3, 1))
    for spec, one, two, three in zip(SPECS, first, again, other, strict=True):
        assert one.dtype == NUMPY_DTYPES[spec.datatype]
        assert one.shape == (3, 3, 2)
        assert three.shape == (1, 3, 2)
        assert np.array_equal(one, two)
    assert not np.array_equal(first[0][:1], other[0])
    assert random_inputs(SPECS, None)[0].shape == (3, 2)


def test_fp16_changes_fp32_alone() -> None:
    assert in_precision(SPECS, "fp32") == SPECS
    assert [s.datatype for s in in_precision(SPECS, "fp16")][:4] == ["FP16", "FP16", "INT64", "UINT8"]


def test_difference_is_relative_to_the_largest_value_of_its_output() -> None:
    found = compare(
        "onnx",
        case(array("float32", [0.0, 100.0]), array("float32", [1.0])),
        [array("float32", [0.001, 100.0]), array("float32", [1.0])],
        "fp32",
    )
    assert found.max_abs == pytest.approx(1e-3)
    assert found.max_rel == pytest.approx(1e-5)
    assert found.passed


@pytest.mark.parametrize(
    ("expected", "actual", "precision", "passed"),
    [
        (array("float32", [1.0]), array("float32", [1.0002]), "fp32", False),
        (array("float32", [1.0]), array("float16", [1.01]), "fp16", True),
        (array("float32", [1.0]), array("float16", [1.05]), "fp16", False),
        (array("int64", [7]), array("int64", [8]), "fp16", False),
        (array("bool", [True]), array("bool", [False]), "fp32", False),
        (array("float32", [np.nan, np.inf]), array("float32", [np.nan, np.inf]), "fp32", True),
        (array("float32", [1.0]), array("float32", [np.nan]), "fp32", False),
        (array("float32", [np.inf]), array("float32", [-np.inf]), "fp32", False),
        (array("float32", [1e5]), array("float16", [np.inf]), "fp16", False),
        (array("float32", [0.0]), array("float32", [0.0]), "fp32", True),
        (np.zeros((3, 0), np.float32), np.zeros((3, 0), np.float32), "fp32", True),
        (np.array([b"a"], object), np.array([b"a"], object), "fp32", True),
        (np.array([b"a"], object), np.array([b"b"], object), "fp32", False),
    ],
)
def test_tolerance(expected: Array, actual: Array, precision: Precision, passed: bool) -> None:
    assert compare("onnx", case(expected), [actual], precision).passed is passed


def test_beyond_tolerance_tells_the_figures() -> None:
    with pytest.raises(
        ConversionFailed, match=r"model.pt differs from its source at batch 3 by up to 0.5 \(relative 0.25"
    ):
        check("torchscript", lambda _: [array("float32", [2.5])], [case(array("float32", [2.0]))], "fp32")


def test_another_shape_tells_both() -> None:
    with pytest.raises(ConversionFailed, match=r"answers shape \[2\] at batch 3 where its source answers \[3\]"):
        check("onnx", lambda _: [np.zeros(2, np.float32)], [case(np.zeros(3, np.float32))], "fp32")
