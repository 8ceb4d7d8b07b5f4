"""Tensors for a benchmark from a file: numpy's .npz, or the JSON form of perf_analyzer."""

import base64
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from efserve.client.v2 import ModelInfo
from efserve.errors import UsageError
from efserve.loadtest.inputs import Rows, batched
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec, bfloat16


def from_file(path: Path, model: ModelInfo, batch: int, shapes: Mapping[str, Shape]) -> list[tuple[Array, ...]]:
    """Requests from the samples of a .npz or .json file: `batch` consecutive samples each, round the end if need be.

    In a .npz each array is an input, its first axis the samples (no such axis where the model does not batch). In a
    .json of perf_analyzer's form each entry of "data" is a sample: name -> flat or nested values, or
    {"content": values, "shape": dims}, or {"b64": wire bytes}. Raises UsageError.
    """
    if path.suffix not in (".npz", ".json"):
        raise UsageError(f"--input: expected random, zero, FILE.npz, FILE.json or a folder of images; got '{path}'")
    try:
        rows = _npz_rows(path, model) if path.suffix == ".npz" else _json_rows(path, model, shapes)
        return batched(rows, model, batch)
    except OSError as exc:
        raise UsageError(f"--input {path}: cannot read it: {exc.strerror or exc}") from exc
    except (ValueError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as exc:
        raise UsageError(f"--input {path}: {exc}") from exc


def _npz_rows(path: Path, model: ModelInfo) -> Rows:
    with path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array; save it by the name of its input with numpy.savez")
        arrays: dict[str, Array] = {name: file[name] for name in file.files}
    rows = {}
    for spec in model.inputs:
        if spec.name not in arrays:
            raise ValueError(f"no array '{spec.name}'; it has {', '.join(arrays) or 'none'}")
        array = arrays[spec.name]
        dims = spec.dims[1:] if model.batches else spec.dims
        samples = [array] if array.ndim == len(dims) else list(array)
        rows[spec.name] = [_fitting(spec, dims, _typed(spec, sample)) for sample in samples]
    return _same_count(rows)


def _json_rows(path: Path, model: ModelInfo, shapes: Mapping[str, Shape]) -> Rows:
    document = msgspec.json.decode(path.read_bytes(), type=_DataFile)
    rows: Rows = {spec.name: [] for spec in model.inputs}
    for index, entry in enumerate(document.data):
        for spec in model.inputs:
            if spec.name not in entry:
                raise ValueError(f"entry {index} of \"data\" has no '{spec.name}'")
            dims = spec.dims[1:] if model.batches else spec.dims
            array = _json_sample(spec, dims, shapes.get(spec.name), entry[spec.name])
            rows[spec.name].append(_fitting(spec, dims, array))
    return _same_count(rows)


class _DataFile(msgspec.Struct):
    data: list[dict[str, object]]


class _Content(msgspec.Struct):
    content: list[object] | None = None
    shape: list[int] | None = None
    b64: str | None = None


def _json_sample(spec: TensorSpec, dims: Shape, given: Shape | None, value: object) -> Array:
    """One input of one sample. Its shape is its own, or that of --shape, or the model's, or that of nested lists."""
    content = msgspec.convert(value, _Content) if isinstance(value, dict) else _Content(content=_as_list(spec, value))
    dtype = NUMPY_DTYPES[spec.datatype]
    if content.b64 is not None:
        array: Array = np.frombuffer(base64.b64decode(content.b64, validate=True), _wire_dtype(spec))
    else:
        array = _typed(spec, np.array(content.content, object if dtype.kind == "O" else None))
    shape = tuple(content.shape) if content.shape is not None else given
    if shape is None:
        shape = array.shape if any(dim < 0 for dim in dims) else dims
    if math.prod(shape) != array.size:
        raise ValueError(f"'{spec.name}' has {array.size} values for shape {list(shape)}")
    return array.reshape(shape)


def _as_list(spec: TensorSpec, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"'{spec.name}' is {value!r}; expected a list of values")
    return value


def _wire_dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    if spec.datatype == "BYTES":
        raise ValueError(f"'{spec.name}' is BYTES: give its strings as a list, not as b64")
    return NUMPY_DTYPES[spec.datatype]


def _typed(spec: TensorSpec, array: Array) -> Array:
    """The values in the input's datatype, where that loses no kind (no fraction, no sign, no string to number)."""
    if spec.datatype == "BYTES" and array.dtype.kind in "OSU":
        strings = np.empty(array.size, np.object_)
        strings[:] = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
        return strings.reshape(array.shape)
    if spec.datatype == "BF16" and array.dtype.kind == "f":
        return bfloat16(array)
    dtype = NUMPY_DTYPES[spec.datatype]
    counts = array.dtype.kind in "iu" and dtype.kind in "iu"
    if counts and array.size:
        bounds = np.iinfo(np.dtype(dtype.name))
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise ValueError(f"'{spec.name}' has values that {spec.datatype} cannot hold")
    if spec.datatype == "BYTES" or not (counts or np.can_cast(array.dtype, dtype, "same_kind")):
        raise ValueError(f"'{spec.name}' is {array.dtype}, the model takes {spec.datatype}")
    return array.astype(dtype)


def _fitting(spec: TensorSpec, dims: Shape, array: Array) -> Array:
    fits = array.ndim == len(dims) and all(want in (-1, got) for want, got in zip(dims, array.shape, strict=True))
    if not fits:
        raise ValueError(f"a sample of '{spec.name}' has shape {list(array.shape)}, the model takes {list(dims)}")
    return array


def _same_count(rows: Rows) -> Rows:
    counts = {name: len(samples) for name, samples in rows.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"every input needs the same number of samples, at least one; found {listing}")
    return rows
