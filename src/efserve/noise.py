"""Tensors made up at random, for whoever has to run a model and has no data for it."""

import math

import numpy as np

from efserve.tensors import NUMPY_DTYPES, Array, Shape, bfloat16


def noise(
    random: np.random.Generator,
    datatype: str,
    shape: Shape,
    *,
    integers_below: int = 2,
    letters: bytes = b"01",
    string_length: int = 1,
) -> Array:
    """Array [shape]: floats in 0..1, truth values, whole numbers from 0 on, strings of these letters.

    As they are by default, any model takes them: 0 and 1 are legal in every mask and as an index of most tables.
    """
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        chosen = random.choice(np.frombuffer(letters, "S1"), (math.prod(shape), string_length))
        strings = np.empty(len(chosen), np.object_)
        strings[:] = [row.tobytes() for row in chosen]
        return strings.reshape(shape)
    if datatype == "BF16":
        return bfloat16(random.random(shape, np.float32))
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, 2 if datatype == "BOOL" else integers_below, shape).astype(dtype)
