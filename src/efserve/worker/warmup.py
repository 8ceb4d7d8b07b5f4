"""The tensors of a config's `model_warmup` samples: zeros, noise, or what a file holds."""

from pathlib import Path

import numpy as np

from efserve.errors import ConfigError
from efserve.model_config import ModelConfig, WarmupInput, WarmupSample
from efserve.noise import noise
from efserve.tensors import Shape, byte_size, bytes_element_ends


def sample_tensors(config: ModelConfig, sample: WarmupSample, folder: Path) -> list[tuple[Shape, bytes]]:
    """Shape and wire bytes of each input, in the order of the config; `folder` is the model's.

    Raises ConfigError where the sample does not fit the model, or its files do not fit the sample.
    """
    given = {each.name: each for each in sample.inputs}
    names = [spec.name for spec in config.inputs]
    if sorted(given) != sorted(names):
        raise ConfigError(
            f"model_warmup '{sample.name}' of '{config.name}' has inputs {sorted(given)}, expected {names}"
        )
    found = []
    for spec in config.inputs:
        each = given[spec.name]
        if each.datatype != spec.datatype:
            raise ConfigError(
                f"model_warmup '{sample.name}' of '{config.name}': input '{each.name}' is {each.datatype}, "
                f"the model expects {spec.datatype}"
            )
        rows = sample.rows if config.batches else 1
        shape = (rows, *each.dims) if config.batches else each.dims
        found.append((shape, _row(each, folder, f"model_warmup '{sample.name}' of '{config.name}'") * rows))
    return found


def _row(given: WarmupInput, folder: Path, where: str) -> bytes:
    """The bytes of one row; every row of the sample is the same."""
    count = int(np.prod(given.dims))
    if given.file:
        return _from_file(given, folder / "warmup" / given.file, count, where)
    if given.datatype == "BYTES":
        return bytes(4 * count)  # empty strings, which are as random as any
    size_bytes = byte_size(given.datatype, given.dims)
    if not given.is_random:
        return bytes(size_bytes)
    return noise(np.random.default_rng(0), given.datatype, (count,)).tobytes()


def _from_file(given: WarmupInput, path: Path, count: int, where: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{where}: file of input '{given.name}' cannot be read: {exc}") from exc
    if given.datatype == "BYTES":
        bytes_element_ends(data, count, f"{where}: input '{given.name}'")
    elif len(data) != byte_size(given.datatype, given.dims):
        raise ConfigError(
            f"{where}: file of input '{given.name}' has {len(data)} bytes, "
            f"dims {list(given.dims)} need {byte_size(given.datatype, given.dims)}"
        )
    return data
