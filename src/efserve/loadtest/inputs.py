"""The tensors that a benchmark sends: shapes from the model's metadata, values at random or zero.

Values from files are `datafile.py` and `images.py`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from efserve.client.v2 import ModelInfo
from efserve.errors import UsageError
from efserve.noise import noise
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec

RANDOM_REQUESTS = 8  # different requests, sent in turn, so that no cache answers for the model
RANDOM_BYTES = 1 << 26  # fewer of them where they are large
INTEGERS_BELOW = 100  # random integers are indices as often as not: small ones are legal in most vocabularies
Rows = dict[str, list[Array]]  # input -> samples, without the batch dimension where the model batches
LETTERS = b"abcdefghijklmnopqrstuvwxyz0123456789"


def parse_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    """`NAME:DIM,DIM,...` of each option as name -> dims. Raises UsageError."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        parts = dims.split(",")
        if not name or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(f"--shape: expected NAME:DIM,DIM,... such as image:3,224,224; got '{text}'")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def sample_dims(model: ModelInfo, batch: int, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Dims of one sample of each input, without the batch where the model batches. Raises UsageError.

    `shapes` gives the free dimensions of inputs by name, and must agree with the others.
    """
    if batch > 1 and not model.batches:
        raise UsageError(f"--batch {batch}: model '{model.name}' does not batch; leave --batch out")
    names = [spec.name for spec in model.inputs]
    for name in shapes:
        if name not in names:
            raise UsageError(f"--shape: model '{model.name}' has no input '{name}'; it has {', '.join(names)}")
    return {spec.name: _dims(spec, 1 if model.batches else 0, shapes.get(spec.name)) for spec in model.inputs}


def _dims(spec: TensorSpec, skip: int, given: Shape | None) -> Shape:
    dims = spec.dims[skip:]
    if given is None:
        if any(dim < 0 for dim in dims):
            raise UsageError(
                f"input '{spec.name}' has free dimensions {list(dims)}: give them with "
                f"--shape {spec.name}:{','.join('N' if dim < 0 else str(dim) for dim in dims)}"
            )
        return dims
    if len(given) != len(dims) or any(want not in (-1, got) for want, got in zip(dims, given, strict=True)):
        raise UsageError(f"--shape {spec.name}: {list(given)} does not fit the model's {list(dims)}")
    return given


def generated(
    model: ModelInfo, dims: Mapping[str, Shape], batch: int, seed: int | None, string_length: int
) -> list[tuple[Array, ...]]:
    """Requests made up: random ones from a seed, or with seed None a single one of zeros and empty strings."""
    shapes = [(*((batch,) if model.batches else ()), *dims[spec.name]) for spec in model.inputs]
    if seed is None:
        return [tuple(_zeros(spec, shape) for spec, shape in zip(model.inputs, shapes, strict=True))]
    elements = sum(
        math.prod(shape) * (string_length + 4 if spec.datatype == "BYTES" else NUMPY_DTYPES[spec.datatype].itemsize)
        for spec, shape in zip(model.inputs, shapes, strict=True)
    )
    count = max(1, min(RANDOM_REQUESTS, RANDOM_BYTES // max(1, elements)))
    random = np.random.default_rng(seed)
    drawn = partial(noise, random, integers_below=INTEGERS_BELOW, letters=LETTERS, string_length=string_length)
    return [
        tuple(drawn(spec.datatype, shape) for spec, shape in zip(model.inputs, shapes, strict=True))
        for _ in range(count)
    ]


def _zeros(spec: TensorSpec, shape: Shape) -> Array:
    if spec.datatype == "BYTES":
        return np.full(shape, b"", np.object_)
    return np.zeros(shape, NUMPY_DTYPES[spec.datatype])


def batched(rows: Rows, model: ModelInfo, batch: int) -> list[tuple[Array, ...]]:
    """Requests of `batch` consecutive samples each, round the end if need be; ValueError where they do not fit."""
    count = len(next(iter(rows.values())))
    if not model.batches:
        return [tuple(rows[spec.name][index] for spec in model.inputs) for index in range(count)]
    starts = range(0, max(count - batch, 0) + 1, batch)
    return [tuple(_stack(rows[spec.name], start, batch, spec) for spec in model.inputs) for start in starts]


def _stack(rows: list[Array], start: int, batch: int, spec: TensorSpec) -> Array:
    chosen = [rows[(start + offset) % len(rows)] for offset in range(batch)]
    if len({row.shape for row in chosen}) > 1:
        raise ValueError(f"samples of '{spec.name}' differ in shape and cannot share a batch; use --batch 1")
    return np.stack(chosen)
