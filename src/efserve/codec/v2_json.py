"""The JSON of inference requests as typed structures, and the values of tensors given as JSON.

Unknown fields are ignored, as the protocol asks of servers that know fewer extensions than their clients.
"""

from itertools import chain
from math import prod
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from efserve.errors import InvalidRequest, WrongJson
from efserve.inference import Buffer
from efserve.tensors import NUMPY_DTYPES, encode_bytes

Count = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class InputParameters(msgspec.Struct):
    """`parameters` of one input."""

    binary_data_size: Count | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: Count = 0
    shared_memory_byte_size: Count = 0


class InputHead(msgspec.Struct):
    """One of `inputs`; `data` stays as it came until the datatype is known to be right."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters = msgspec.field(default_factory=InputParameters)
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class OutputParameters(msgspec.Struct):
    """`parameters` of one requested output."""

    binary_data: bool | None = None
    classification: Count = 0
    shared_memory_region: str | None = None
    shared_memory_offset: Count = 0
    shared_memory_byte_size: Count = 0


class OutputHead(msgspec.Struct):
    """One of `outputs`."""

    name: str
    parameters: OutputParameters = msgspec.field(default_factory=OutputParameters)


class RequestHead(msgspec.Struct):
    """The JSON part of an inference request."""

    inputs: list[InputHead]
    id: str | int = ""
    parameters: dict[str, Any] = {}
    outputs: list[OutputHead] = []


MAX_NESTING = 100  # of lists in a tensor's data
_MAX_INT64 = 2**63 - 1

# What msgspec raises for text that is no JSON, no UTF-8, or nested too deeply.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_head_decoder = msgspec.json.Decoder(RequestHead)


def parse_request(text: Buffer) -> RequestHead:
    """The JSON part of an inference request; InvalidRequest names the place that is wrong."""
    try:
        head = _head_decoder.decode(text)
    except _UNREADABLE as exc:
        raise InvalidRequest(f"failed to parse the request JSON: {exc}") from exc
    for item in head.inputs:
        _check_dims(item)
    return head


def _check_dims(item: InputHead) -> None:
    """Raise unless the shape can be one, in Triton's words; sizes of data that is not JSON are checked against it."""
    if any(dim < 0 for dim in item.shape):
        raise WrongJson("Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer")
    count, unit = prod(item.shape), NUMPY_DTYPES[item.datatype].itemsize if item.datatype in NUMPY_DTYPES else 1
    if not bytes(item.data) or count * unit <= _MAX_INT64:
        return
    if count > _MAX_INT64:
        raise InvalidRequest(
            f"invalid shape for input '{item.name}': shape [{','.join(map(str, item.shape))}] causes total element "
            f"count to exceed maximum size of {_MAX_INT64}"
        )
    raise InvalidRequest(
        f"byte size overflow for input '{item.name}': element count ({count}) * data type size ({unit}) exceeds "
        f"maximum allowed size ({_MAX_INT64})"
    )


def parse_as(kind: type[T], text: Buffer, what: str) -> T:
    """A control request's JSON; `what` names it in errors."""
    try:
        return msgspec.json.decode(text, type=kind)
    except _UNREADABLE as exc:
        raise InvalidRequest(f"failed to parse {what}: {exc}") from exc


def wire_from_json(data: msgspec.Raw, datatype: str, count: int, what: str) -> bytes:
    """Wire bytes of a tensor of `count` elements given as JSON, flat or nested in row-major order."""
    try:
        values = msgspec.json.decode(data)
    except _UNREADABLE as exc:
        raise InvalidRequest(f"{what}: {exc}") from exc
    if datatype in ("FP16", "BF16"):
        raise InvalidRequest(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data format for "
            f"{what.removeprefix('inference ')}"
        )
    values = _flat(values if isinstance(values, list) else [values], what)
    if len(values) != count:
        raise _wrong_count(len(values), datatype, count, what)
    if datatype == "BYTES":
        _require(values, (str,), datatype, what)
        return encode_bytes([value.encode() for value in values])
    if datatype == "BOOL":
        if any(value not in (0, 1) for value in values):
            bad = next(value for value in values if value not in (0, 1))
            raise InvalidRequest(f"{what}: {_shown(bad)} is no BOOL; expected true, false, 0 or 1")
        _require(values, (bool, int), datatype, what)
        return bytes(map(int, values))
    return _numbers(values, datatype, what)


def check_data(head: RequestHead) -> None:
    """Raise for the first input whose JSON data cannot be what its own datatype and shape say."""
    for item in head.inputs:
        is_json = bytes(item.data) and item.parameters == InputParameters()
        if is_json and item.datatype in NUMPY_DTYPES and item.datatype != "BYTES":
            wire_from_json(item.data, item.datatype, prod(item.shape), f"input '{item.name}'")


def _wrong_count(given: int, datatype: str, count: int, what: str) -> InvalidRequest:
    """The error for JSON data of another number of elements, in Triton's words."""
    if datatype == "BYTES" and given < count:
        return InvalidRequest(f"expected {count} string elements for {what}, got {given}")
    if datatype == "BYTES":
        return InvalidRequest(f"unexpected number of string elements {count + 1} for {what}, expecting {count}")
    if given < count:
        return WrongJson("Failed to parse 'data' field: shape does not match true shape")
    return WrongJson("Unable to parse 'data': Shape does not match true shape of 'data' field")


def _flat(values: list[Any], what: str) -> list[Any]:
    """Nested lists as one flat list."""
    levels = 1
    while values and isinstance(values[0], list):
        levels += 1
        if levels >= MAX_NESTING:
            raise InvalidRequest(
                f"Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit ({MAX_NESTING}), {what}"
            )
        if not all(isinstance(value, list) for value in values):
            raise InvalidRequest(f"{what}: data mixes lists and values at one level")
        values = list(chain.from_iterable(values))
    return values


def _numbers(values: list[Any], datatype: str, what: str) -> bytes:
    dtype: np.dtype[Any] = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        _require(values, (float, int), datatype, what)
        try:
            with np.errstate(over="ignore"):
                array = np.array(values, np.float64).astype(dtype)
        except OverflowError as exc:
            raise InvalidRequest(f"{what}: a value is out of range for {datatype}") from exc
        if not np.isfinite(array).all():  # JSON has no infinity: the value was finite and too large
            bad = values[int(np.flatnonzero(~np.isfinite(array))[0])]
            raise InvalidRequest(f"{what}: {_shown(bad)} is out of range for {datatype}")
        return array.tobytes()
    _require(values, (int,), datatype, what)
    limits = np.iinfo(dtype)
    for bad in (min(values, default=0), max(values, default=0)):
        if not limits.min <= bad <= limits.max:
            raise InvalidRequest(f"{what}: {_shown(bad)} is out of range for {datatype} ({limits.min} to {limits.max})")
    return np.array(values, dtype).tobytes()


def _require(values: list[Any], kinds: tuple[type, ...], datatype: str, what: str) -> None:
    wrong = set(map(type, values)) - set(kinds)
    if wrong:
        bad = next(value for value in values if type(value) in wrong)
        raise InvalidRequest(f"{what}: {_shown(bad)} is no {datatype} value")


def _shown(value: object) -> str:
    """A value as JSON, cut to a readable length."""
    text = msgspec.json.encode(value).decode() if not isinstance(value, int) or isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:40] + "..."
