"""`reshape`: which shapes may stand for each other, and engines behind it."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_models
from efserve.engines import reshaped as reshaped_engine
from efserve.engines.base import Source
from efserve.errors import ConfigError
from efserve.partition import Partition
from efserve.pbtxt import config_json, parse_config
from efserve.reshapes import reshape_problem, reshaped

ECHO = Path(__file__).parent / "models" / "echo"

trunks = st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4)


def with_free(parts: list[list[int]]) -> tuple[int, ...]:
    dims: list[int] = []
    for index, part in enumerate(parts):
        dims += [*([-1] if index else []), *part]
    return tuple(dims)


@given(trunks, st.data())
def test_a_shape_and_back_is_the_shape(parts: list[list[int]], data: st.DataObject) -> None:
    dims, target = with_free(parts), with_free([[prod(part)] for part in parts])
    assert reshape_problem(dims, target, batches=True) == ""
    shape = tuple(data.draw(st.integers(0, 4)) if dim == -1 else dim for dim in dims)
    there = reshaped(shape, dims, target)
    assert prod(there) == prod(shape)
    assert reshaped(there, target, dims) == shape


@pytest.mark.parametrize(
    ("dims", "reshape", "problem"),
    [
        ([3, 8, 8], [1, 3, 8, 8], ""),
        ([1], [], ""),
        ([2], [], "has different size for dims and reshape"),
        ([4], [2, 3], "has different size for dims and reshape"),
        ([2, -1], [-1, 3], "has different size for dims and reshape"),
        ([-1, -1], [-1], "has different number of variable-size dimensions for dims and reshape"),
        ([-1], [4], "has different size for dims and reshape"),
        ([4], [4, 0], "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"),
    ],
)
def test_what_cannot_be_reshaped(dims: list[int], reshape: list[int], problem: str) -> None:
    assert reshape_problem(dims, reshape, batches=True) == problem


def test_no_scalars_without_batches() -> None:
    assert "cannot have empty reshape for non-batching model" in reshape_problem([1], [], batches=False)
    with pytest.raises(ConfigError, match="model output 'y' has different size for dims and reshape for m"):
        parse_config('output { name: "y" data_type: TYPE_FP32 dims: 4 reshape { shape: [3] } }', "m")


RESHAPED = (
    'max_batch_size: 4 input { name: "input" data_type: TYPE_FP32 dims: [2, 3] reshape { shape: [6] } } '
    'output { name: "output" data_type: TYPE_FP32 dims: [3, 1, 2] reshape { shape: [6] } }'
)


def test_an_onnx_model_has_its_own_shapes_inside(tmp_path: Path) -> None:
    config = parse_config(RESHAPED, "m")
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(6))
    engine = reshaped_engine.load("onnx", Source(folder, config, Partition()))
    assert (engine.config.inputs, engine.config.outputs) == (config.inputs, config.outputs)
    assert config_json(engine.config)["input"][0]["reshape"] == {"shape": [6]}
    given = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    (answer,) = engine.infer([given])
    np.testing.assert_array_equal(answer, given.reshape(2, 3, 1, 2))
    target = np.zeros((2, 3, 1, 2), np.float32)
    bound = engine.bind([given], [target])
    assert bound is not None
    bound()
    np.testing.assert_array_equal(target, given.reshape(2, 3, 1, 2))
    engine.close()


def test_a_file_that_has_other_shapes_inside_is_refused(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(7))
    with pytest.raises(ConfigError, match=r"complete shape \[-1,6\]"):
        reshaped_engine.load("onnx", Source(folder, parse_config(RESHAPED, "m"), Partition()))


def test_free_dimensions_and_strings() -> None:
    text = (
        'backend: "python" input { name: "text" data_type: TYPE_STRING dims: [-1, 2] reshape { shape: [1, -1, 2] } } '
        'output { name: "text_out" data_type: TYPE_STRING dims: [-1, 2] reshape { shape: [1, -1, 2] } }'
    )
    engine = reshaped_engine.load("python", Source(ECHO / "1", parse_config(text, "echo"), Partition()))
    given = np.array([[b"a", b"b"], [b"c", b"d"], [b"", b"e"]], np.object_)
    (answer,) = engine.infer([given])
    np.testing.assert_array_equal(answer, given)
