"""Samples of `model_warmup`: their bytes, and that a worker runs them before it is ready."""

from pathlib import Path

import numpy as np
import pytest

from efserve.errors import ConfigError, InvalidRequest
from efserve.model_config import ModelConfig, WarmupInput, WarmupSample
from efserve.tensors import DATATYPES, TensorSpec, byte_size
from efserve.worker.warmup import sample_tensors


def config(datatype: str = "FP32", max_batch: int = 4) -> ModelConfig:
    return ModelConfig("m", "python", max_batch, (TensorSpec("x", datatype, (2,)),), (TensorSpec("y", datatype, (2,)),))


def sample(datatype: str = "FP32", file: str = "", *, is_random: bool = False) -> WarmupSample:
    return WarmupSample("w", (WarmupInput("x", datatype, (2,), file, is_random),), rows=3)


@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype != "BYTES"])
@pytest.mark.parametrize("is_random", [False, True])
def test_zeros_and_noise_have_the_size_of_their_shape(datatype: str, is_random: bool, tmp_path: Path) -> None:
    ((shape, data),) = sample_tensors(config(datatype), sample(datatype, is_random=is_random), tmp_path)
    assert shape == (3, 2)
    assert len(data) == byte_size(datatype, shape)
    assert is_random or not any(data)


def test_a_model_that_does_not_batch_gets_one_row(tmp_path: Path) -> None:
    ((shape, data),) = sample_tensors(config("BYTES", max_batch=0), sample("BYTES"), tmp_path)
    assert (shape, data) == ((2,), bytes(8))


def test_a_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    row = np.array([1.5, 2.5], np.float32).tobytes()
    (tmp_path / "warmup" / "row").write_bytes(row)
    ((_, data),) = sample_tensors(config(), sample(file="row"), tmp_path)
    assert data == row * 3
    (tmp_path / "warmup" / "row").write_bytes(row[:-1])
    with pytest.raises(ConfigError, match="has 7 bytes, dims \\[2\\] need 8"):
        sample_tensors(config(), sample(file="row"), tmp_path)
    with pytest.raises(InvalidRequest, match="input 'x'"):
        sample_tensors(config("BYTES"), sample("BYTES", file="row"), tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        sample_tensors(config(), sample(file="none"), tmp_path)


def test_what_does_not_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="input 'x' is INT8, the model expects FP32"):
        sample_tensors(config(), sample("INT8"), tmp_path)
    with pytest.raises(ConfigError, match=r"has inputs \[\], expected \['x'\]"):
        sample_tensors(config(), WarmupSample("w", ()), tmp_path)
