"""Arrays as short text, for result files."""

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def pack(values: npt.NDArray[Any]) -> str:
    """Values as text: base64 of the zlib stream of their little-endian bytes, low bytes of all values first.

    That order puts the high bytes, which are all alike, side by side: it makes the text half as long.
    """
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    planes = little.view(np.uint8).reshape(-1, values.dtype.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


def unpack(text: str, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    """The values of this type that `pack` wrote; ValueError when the text is something else."""
    try:
        planes = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except zlib.error as exc:
        raise ValueError(f"not a zlib stream: {exc}") from exc
    kind = np.dtype(dtype)
    rows = np.ascontiguousarray(planes.reshape(kind.itemsize, -1).T)
    return rows.view(kind.newbyteorder("<")).reshape(-1).astype(kind)
