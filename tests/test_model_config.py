"""Completing a config from the model file."""

from dataclasses import replace

import pytest

from efserve.errors import ConfigError
from efserve.model_config import DynamicBatching, FileSignature, ModelConfig, complete
from efserve.tensors import TensorSpec

FREE = FileSignature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),))
FIXED = FileSignature((TensorSpec("x", "FP32", (1, 3)),), (TensorSpec("y", "FP32", (1, 2)),))
X, Y = TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", (2,))


def test_a_free_first_dimension_becomes_the_batch() -> None:
    done = complete(ModelConfig("m"), FREE, max_batch=16)
    assert (done.max_batch_size, done.inputs, done.outputs) == (16, (X,), (Y,))
    assert done.dynamic_batching == DynamicBatching()


def test_a_fixed_first_dimension_does_not() -> None:
    done = complete(ModelConfig("m"), FIXED)
    assert (done.max_batch_size, done.inputs[0].dims, done.dynamic_batching) == (0, (1, 3), None)


def test_what_the_config_says_stays() -> None:
    stated = ModelConfig("m", max_batch_size=2, inputs=(X,), outputs=(Y,))
    assert complete(stated, FREE) == stated


def test_only_what_is_missing_is_filled() -> None:
    done = complete(ModelConfig("m", max_batch_size=2, inputs=(X,)), FREE)
    assert (done.max_batch_size, done.outputs, done.dynamic_batching) == (2, (Y,), None)


def test_another_maximum_drops_the_preferred_sizes_beyond_it() -> None:
    config = ModelConfig("m", max_batch_size=8, dynamic_batching=DynamicBatching((2, 4, 8), 1000))
    assert config.with_max_batch(4) == ModelConfig(
        "m", max_batch_size=4, dynamic_batching=DynamicBatching((2, 4), 1000)
    )
    assert ModelConfig("m", max_batch_size=8).with_max_batch(16).max_batch_size == 16


def test_a_file_without_names_needs_a_config() -> None:
    stated = ModelConfig("m", max_batch_size=2, inputs=(X,), outputs=(Y,))
    assert complete(stated, FileSignature()) == stated
    with pytest.raises(ConfigError, match="must list 'input' and 'output'"):
        complete(ModelConfig("m"), FileSignature())


@pytest.mark.parametrize(
    ("config", "file", "says"),
    [
        (ModelConfig("m", max_batch_size=4), FIXED, "autofill failed for model 'm': model does not support batching"),
        (
            ModelConfig("m", max_batch_size=2, inputs=(replace(X, name="z"),), outputs=(Y,)),
            FREE,
            "unexpected inference input 'z', allowed inputs are: x",
        ),
        (
            ModelConfig("m", max_batch_size=2, inputs=(replace(X, datatype="INT8"),), outputs=(Y,)),
            FREE,
            "file says FP32",
        ),
        (
            ModelConfig("m", max_batch_size=2, inputs=(replace(X, dims=(4,)),), outputs=(Y,)),
            FREE,
            r"complete shape \[-1,4\]",
        ),
        (ModelConfig("m", inputs=(X,), outputs=(Y,)), FREE, r"shape \[3\]"),
    ],
)
def test_contradictions_are_one_sentence(config: ModelConfig, file: FileSignature, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        complete(config, file)


def test_an_input_that_the_config_leaves_out_is_an_error() -> None:
    two = FileSignature((*FREE.inputs, TensorSpec("mask", "BOOL", (-1,))), FREE.outputs)
    with pytest.raises(ConfigError, match=r"configuration expects 1 inputs, model provides 2: .*mask"):
        complete(ModelConfig("m", max_batch_size=2, inputs=(X,), outputs=(Y,)), two)
