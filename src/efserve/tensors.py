"""Tensors as the v2 protocol sees them: datatypes, sizes, and the wire form of strings.

Owns the table of datatypes and the BYTES encoding. Knows no model, no request, no engine.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efserve.errors import InvalidRequest

Shape = tuple[int, ...]
Array = npt.NDArray[np.generic]

# BF16 has no numpy dtype: its two bytes are carried as uint16. BYTES elements are Python `bytes` in object arrays.
NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPES = tuple(NUMPY_DTYPES)

_LENGTH = struct.Struct("<I")


# Stands for an optional input that a request does not have: as an array, and as the last dimension of its shape.
ABSENT: Array = np.empty(0, np.void)
ABSENT_DIM = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of a model's input or output; -1 stands for a free dimension.

    Whether `dims` begins with the batch is said by whoever holds the spec: in a `ModelConfig` it never does when the
    model batches, in a `FileSignature` it always does.
    """

    name: str
    datatype: str
    dims: Shape

    @property
    def is_static(self) -> bool:
        """True when no dimension is free and elements have a fixed size."""
        return self.datatype != "BYTES" and all(dim >= 0 for dim in self.dims)


def byte_size(datatype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of this shape on the wire; not defined for BYTES, whose size depends on its elements."""
    return NUMPY_DTYPES[datatype].itemsize * math.prod(shape)


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """v2 datatype of a numpy dtype; KeyError when the protocol has none (complex, datetime)."""
    if dtype.kind in "OSU":
        return "BYTES"
    return _DATATYPE_OF_DTYPE[dtype]


_DATATYPE_OF_DTYPE = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name not in ("BF16", "BYTES")}


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """Wire form of BYTES elements: each is its length as little-endian uint32 and then its bytes."""
    return b"".join([_LENGTH.pack(len(element)) + element for element in elements])


def decode_bytes(data: memoryview | bytes, count: int, what: str) -> list[bytes]:
    """The `count` BYTES elements in `data`; `what` names the tensor in errors.

    Raises InvalidRequest when the data holds fewer or more elements, or is cut short.
    """
    ends = bytes_element_ends(data, count, what)
    elements, start = [], 0
    for end in ends:
        elements.append(bytes(data[start + 4 : end]))
        start = end
    return elements


def bytes_element_ends(data: memoryview | bytes, count: int, what: str) -> list[int]:
    """Offset at which each of the `count` BYTES elements in `data` ends; errors as in `decode_bytes`."""
    ends, at, size = [], 0, len(data)
    for index in range(count):
        if at == size:
            raise InvalidRequest(f"expected {count} string elements for {what}, got {index}")
        if at + 4 > size:
            raise InvalidRequest(
                f"incomplete string length indicator for {what}, expecting 4 bytes but only {size - at} bytes available"
            )
        at += 4 + _LENGTH.unpack_from(data, at)[0]
        if at > size:
            raise InvalidRequest(f"string element {index} of {what} needs {at - size} bytes more than the data holds")
        ends.append(at)
    if at != size:
        raise InvalidRequest(f"unexpected number of string elements {count + 1} for {what}, expecting {count}")
    return ends


def to_array(data: memoryview | bytes, datatype: str, shape: Sequence[int], what: str = "tensor") -> Array:
    """Array [shape] over wire bytes: a view without a copy, except for BYTES, which become an object array."""
    if datatype == "BYTES":
        array = np.empty(math.prod(shape), np.object_)
        array[:] = decode_bytes(data, array.size, what)
        return array.reshape(shape)
    return np.frombuffer(data, NUMPY_DTYPES[datatype]).reshape(shape)


def to_wire(array: Array) -> bytes | memoryview:
    """Wire bytes of an array: a view where it is C-contiguous and little-endian, else a copy."""
    if array.dtype.kind in "OSU":
        return encode_bytes([_element(value) for value in array.ravel()])
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""


def bfloat16(values: Array) -> Array:
    """Float values as BF16, carried in uint16: the upper halves of their float32 bits, cut off, not rounded."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16(array: Array) -> Array:
    """BF16, carried in uint16, as the float32 values that it stands for."""
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _element(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
