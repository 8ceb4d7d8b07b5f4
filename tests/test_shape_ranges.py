"""Ranges of shapes from a config: batches, preferred sizes, free dimensions."""

import pytest

from efserve.engines.shape_ranges import ShapeRange, shape_ranges
from efserve.errors import ConfigError
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.tensors import TensorSpec

IMAGE = TensorSpec("image", "FP32", (3, 224, 224))
IDS = TensorSpec("ids", "INT64", (-1,))


def config(
    *inputs: TensorSpec,
    batch: int = 16,
    preferred: tuple[int, ...] = (),
    parameters: dict[str, str] | None = None,
) -> ModelConfig:
    batching = DynamicBatching(preferred_batch_sizes=preferred)
    return ModelConfig("m", "tensorrt", batch, inputs, inputs, batching, parameters=parameters or {})


def test_the_batch_is_best_at_the_maximum_or_as_preferred() -> None:
    (found,) = shape_ranges(config(IMAGE))
    assert found == ShapeRange("image", (1, 3, 224, 224), (16, 3, 224, 224), (16, 3, 224, 224))
    (found,) = shape_ranges(config(IMAGE, preferred=(4, 8)))
    assert (found.least[0], found.best[0], found.most[0]) == (1, 8, 16)


def test_a_model_that_does_not_batch() -> None:
    assert shape_ranges(config(IMAGE, batch=0)) == (ShapeRange("image", IMAGE.dims, IMAGE.dims, IMAGE.dims),)


def test_free_dimensions_are_parameters() -> None:
    (found,) = shape_ranges(config(IDS, parameters={"profile:ids": "1 128 512"}))
    assert found == ShapeRange("ids", (1, 1), (16, 128), (16, 512))
    assert found.holds((3, 77))
    assert not found.holds((3, 513))
    assert not found.holds((17, 77))
    assert not found.holds((3, 77, 1))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, r"input 'ids' has free dimensions \[-1\].*profile:ids.*such as \"1 128 512\""),
        (
            {"profile:ids": "1 128"},
            r"parameter profile:ids is '1 128', expected three .* of dims \[-1\]",
        ),
        ({"profile:ids": "1 x 3"}, "expected three ascending"),
        ({"profile:ids": "1 2 3 4"}, "expected three ascending"),
        ({"profile:ids": "512 128 1"}, "expected three ascending"),
        ({"profile:ids": "0 1 2"}, "expected three ascending"),
        ({"profile:ids": "1x1 2x2 3x3"}, "expected three ascending"),
        ({"profile:idz": "1 2 3", "profile:ids": "1 2 3"}, "parameter profile:idz names no input; there are ids"),
    ],
)
def test_what_is_missing_or_wrong(parameters: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        shape_ranges(config(IDS, parameters=parameters))


def test_fixed_dimensions_stay() -> None:
    free = TensorSpec("image", "FP32", (3, -1, -1))
    (found,) = shape_ranges(config(free, batch=0, parameters={"profile:image": "3x64x64 3x224x224 3x512x640"}))
    assert found.most == (3, 512, 640)
    with pytest.raises(ConfigError, match='such as "3x1x1 3x128x128 3x512x512"'):
        shape_ranges(config(free, batch=0, parameters={"profile:image": "1x64x64 3x224x224 3x512x640"}))
