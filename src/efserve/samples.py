"""Files as rows for a model: images, `.npy` and `.npz` arrays, `.json` values, checked against the model's inputs."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from efserve.errors import UsageError
from efserve.imaging import SUFFIXES, from_parameters, load_image
from efserve.model_config import ModelConfig
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

_KNOWN = (*SUFFIXES, ".npy", ".npz", ".json")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row from one file: a tensor for each input, without a batch dimension."""

    name: str  # the file, with #row where it holds several
    tensors: tuple[Array, ...]


def read_samples(path: Path, config: ModelConfig) -> list[Sample]:
    """The rows that a file holds; raises UsageError for one that is missing, unknown, or does not fit the model."""
    if not path.is_file():
        raise UsageError(f"{path} is no file; expected an image, .npy, .npz or .json")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        spec = _only_input(config, path)
        rows = _rows(path, config, [load_image(path, spec, from_parameters(config.parameters))])
    elif suffix == ".npy":
        spec = _only_input(config, path)
        rows = _rows(path, config, [_as_input(path, _read_npy(path), spec)])
    elif suffix == ".npz":
        rows = _rows(path, config, _npz_tensors(path, config))
    elif suffix == ".json":
        rows = _rows(path, config, _json_tensors(path, config))
    else:
        raise UsageError(f"{path} has an unknown type; expected {', '.join(SUFFIXES)}, .npy, .npz or .json")
    names = [str(path)] if len(rows) == 1 else [f"{path}#{index}" for index in range(len(rows))]
    return [Sample(name, tensors) for name, tensors in zip(names, rows, strict=True)]


def read_folder(path: Path, config: ModelConfig, most: int) -> list[Sample]:
    """The rows of a file, or of all images and arrays below a folder; of more than `most`, evenly picked ones.

    A folder's .json files are taken where there is nothing else: beside images they tell labels. Raises UsageError
    where there is nothing, and as `read_samples`.
    """
    if not path.is_dir():
        return _picked(read_samples(path, config), most)
    known = sorted(file for file in path.rglob("*") if file.suffix.lower() in _KNOWN and file.is_file())
    if not known:
        raise UsageError(f"{path} has no files of samples; expected {', '.join(_KNOWN)}")
    files = [file for file in known if file.suffix.lower() != ".json"] or known
    return _picked([row for file in _picked(files, most) for row in read_samples(file, config)], most)


def _picked(items: list[_Item], most: int) -> list[_Item]:
    return items if len(items) <= most else [items[at * len(items) // most] for at in range(most)]


def batches(samples: Sequence[Sample], max_rows: int) -> Iterator[list[Sample]]:
    """The samples in order, in groups of equal shapes and at most `max_rows`."""
    waiting = iter(samples)
    group = list(islice(waiting, 1))
    for sample in waiting:
        if len(group) == max_rows or _shapes(sample) != _shapes(group[0]):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in sample.tensors]


def _only_input(config: ModelConfig, path: Path) -> TensorSpec:
    if len(config.inputs) == 1:
        return config.inputs[0]
    names = ", ".join(spec.name for spec in config.inputs)
    raise UsageError(
        f"model '{config.name}' has inputs {names}, and {path} holds one tensor; give all of them in a .json file: "
        '{"inputs": [{"name": ..., "data": ...}, ...]}'
    )


def _read_npy(path: Path) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise UsageError(f"{path} cannot be read as .npy: {exc}") from exc
    if not isinstance(loaded, np.ndarray):
        raise UsageError(f"{path} holds several arrays; expected one")
    return loaded


def _npz_tensors(path: Path, config: ModelConfig) -> list[Array]:
    """The model's inputs, in order, from arrays by their names."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = dict(loaded.items())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise UsageError(f"{path} cannot be read as .npz: {exc}") from exc
    names = [spec.name for spec in config.inputs]
    if sorted(arrays) != sorted(names):
        has = ", ".join(arrays) or "none"
        raise UsageError(f"{path} has arrays {has}; model '{config.name}' takes {', '.join(names)}")
    return [_as_input(path, arrays[spec.name], spec) for spec in config.inputs]


def _json_tensors(path: Path, config: ModelConfig) -> list[Array]:
    """The model's inputs, in order, from a list of values or from the `inputs` of a v2 request."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UsageError(f"{path} cannot be read as JSON: {exc}") from exc
    if not isinstance(found, dict):
        spec = _only_input(config, path)
        return [_as_input(path, _array(path, found, spec), spec)]
    entries = _entries(path, found)
    missing = [spec.name for spec in config.inputs if spec.name not in entries]
    unknown = set(entries) - {spec.name for spec in config.inputs}
    if missing or unknown:
        names = ", ".join(spec.name for spec in config.inputs)
        raise UsageError(f"{path} has inputs {', '.join(entries) or 'none'}; model '{config.name}' takes {names}")
    return [_as_input(path, _shaped(path, entries[spec.name], spec), spec) for spec in config.inputs]


def _entries(path: Path, found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    listed = found.get("inputs")
    if isinstance(listed, list) and all(isinstance(e, dict) and "name" in e and "data" in e for e in listed):
        return {str(entry["name"]): entry for entry in listed}
    raise UsageError(f'{path}: expected a list of values, or {{"inputs": [{{"name": ..., "data": ...}}, ...]}}')


def _shaped(path: Path, entry: Mapping[str, Any], spec: TensorSpec) -> Array:
    array = _array(path, entry["data"], spec)
    try:
        return array.reshape(entry["shape"]) if "shape" in entry else array
    except (TypeError, ValueError) as exc:
        raise UsageError(f"{path}: input '{spec.name}' has {array.size} values for shape {entry['shape']}") from exc


def _array(path: Path, values: Any, spec: TensorSpec) -> Array:
    try:
        return np.array(values, dtype=None if spec.datatype != "BYTES" else np.object_)
    except ValueError as exc:
        raise UsageError(f"{path}: the values of input '{spec.name}' are nested unevenly") from exc


def _as_input(path: Path, array: Array, spec: TensorSpec) -> Array:
    """The array in the input's datatype, as long as that loses nothing but precision."""
    dtype = NUMPY_DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        encoded = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
        texts = np.empty(len(encoded), np.object_)
        texts[:] = encoded
        return texts.reshape(array.shape)
    if spec.datatype == "BF16":
        raise UsageError(f"input '{spec.name}' is BF16, which files cannot hold; send it with a client instead")
    whole_numbers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if whole_numbers and array.size and np.array_equal(array, array.astype(dtype)):
        return array.astype(dtype)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(f"{path} holds {array.dtype} values, input '{spec.name}' takes {spec.datatype}")
    return array.astype(dtype)


def _rows(path: Path, config: ModelConfig, arrays: Sequence[Array]) -> list[tuple[Array, ...]]:
    """The arrays cut into rows where they have a batch dimension; they need not have one."""
    if all(_fits(array.shape, spec.dims) for array, spec in zip(arrays, config.inputs, strict=True)):
        return [tuple(arrays)]
    stacked = all(_fits(array.shape[1:], spec.dims) for array, spec in zip(arrays, config.inputs, strict=True))
    counts = {array.shape[:1] for array in arrays}
    if config.batches and stacked and len(counts) == 1 and () not in counts:
        return list(zip(*arrays, strict=True))
    shapes = "; ".join(
        f"input '{spec.name}' takes {list(spec.dims)}, got {list(array.shape)}"
        for array, spec in zip(arrays, config.inputs, strict=True)
    )
    raise UsageError(f"{path} does not fit model '{config.name}': {shapes}")


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(want in (-1, got) for got, want in zip(shape, dims, strict=True))
