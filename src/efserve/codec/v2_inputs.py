"""The inputs that a request's head names, checked against the model: shapes, sizes, and where their bytes are."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from efserve.codec.regions import ClientMemory, RegionPlace
from efserve.codec.v2_json import InputHead
from efserve.errors import InvalidRequest
from efserve.inference import Wire
from efserve.model_config import ModelConfig
from efserve.tensors import ABSENT_DIM, Shape, TensorSpec, byte_size, bytes_element_ends

MAX_ELEMENTS = 1 << 48  # of a tensor, zero dimensions not counted: numpy's sizes and strides are 64-bit bytes


class MemoryInput(NamedTuple):
    """An input in the client's shared memory."""

    place: RegionPlace
    elements: int  # of BYTES; -1 for other datatypes
    what: str  # its name for errors

    def read(self, memory: ClientMemory) -> Wire:
        """Its bytes; strings are checked, and copied first, so that they stay what was checked."""
        data = memory.read(self.place)
        if self.elements < 0:
            return data
        copied = bytes(data)
        bytes_element_ends(copied, self.elements, self.what)
        return copied


_Parts = tuple[tuple[Shape, ...], tuple[tuple[int, int] | None, ...], tuple[MemoryInput | None, ...]]


def with_absent(config: ModelConfig, given: Mapping[str, InputHead], rows: int, parts: _Parts) -> _Parts:
    """Shapes, slices and places in memory of the inputs that were given, with those of the others between them."""
    shapes, slices, in_memory = iter(parts[0]), iter(parts[1]), iter(parts[2])
    absent = (rows, ABSENT_DIM) if config.batches else (ABSENT_DIM,)
    names = [spec.name for spec in config.inputs]
    return (
        tuple([next(shapes) if name in given else absent for name in names]),
        tuple([next(slices) if name in given else (0, 0) for name in names]),
        tuple([next(in_memory) if name in given else None for name in names]) if parts[2] else (),
    )


def by_name(config: ModelConfig, inputs: list[InputHead]) -> dict[str, InputHead]:
    """The inputs of a request by name: all that the model needs, and no others."""
    given: dict[str, InputHead] = {}
    known = {spec.name for spec in config.inputs}
    for item in inputs:
        if item.name in given:
            raise InvalidRequest(f"input '{item.name}' already exists in request")
        given[item.name] = item
    optional = config.optional_inputs
    for name in given:
        if name not in known and len(known) - len(optional) <= len(given) <= len(known):
            raise InvalidRequest(f"unexpected inference input '{name}' for model '{config.name}'")
    missing = [spec.name for spec in config.inputs if spec.name not in given and spec.name not in optional]
    if missing or len(given) > len(known) or (config.batches and not given):  # nothing would tell the batch size
        expected = f"{len(known)} inputs"
        if optional:
            expected = f"number of inputs between {len(known) - len(optional)} and {len(known)}"
        raise InvalidRequest(
            f"expected {expected} but got {len(given)} inputs for model '{config.name}'. "
            f"Got input(s) {_quoted(given)}, but missing required input(s) {_quoted(missing)}. "
            "Please provide all required input(s)."
        )
    return given


def tail_places(inputs: list[InputHead]) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each binary input lies in the tail, which follows the request's own order; and the tail's length."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for item in inputs:
        size = item.parameters.binary_data_size
        region = item.parameters.shared_memory_region
        if (size is not None) + (region is not None) + bool(bytes(item.data)) != 1:
            raise InvalidRequest(
                "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
                f"'shared_memory_region' in 'parameters'. But {_shown_fields(item)}, input '{item.name}'"
            )
        if region is not None:
            places[item.name] = (at, at)
        if size is not None:
            places[item.name] = (at, at + size)
            at += size
    return places, at


def _shown_fields(item: InputHead) -> str:
    """Which of the fields that carry data an input has."""
    there = {
        "data": bool(bytes(item.data)),
        "binary_data_size": item.parameters.binary_data_size is not None,
        "shared_memory_region": item.parameters.shared_memory_region is not None,
    }
    named = [f" '{name}'" for name, is_there in there.items() if is_there]
    return f"set{''.join(named)}" if named else "no field is set"


def memory_inputs(
    config: ModelConfig, given: Mapping[str, InputHead], shapes: tuple[Shape, ...]
) -> tuple[MemoryInput | None, ...]:
    """Of each input where it is in shared memory; () where none is."""
    found: list[MemoryInput | None] = []
    for spec, shape in zip(config.inputs, shapes, strict=True):
        parameters = given[spec.name].parameters
        item = None
        if parameters.shared_memory_region is not None:
            place = RegionPlace(
                parameters.shared_memory_region, parameters.shared_memory_offset, parameters.shared_memory_byte_size
            )
            elements = prod(shape) if spec.datatype == "BYTES" else -1
            item = MemoryInput(place, elements, inference_input(config, spec.name))
        found.append(item)
    return tuple(found) if any(found) else ()


def check_rows(config: ModelConfig, shapes: "list[Shape] | tuple[Shape, ...]") -> int:
    """Number of rows of a request: the first dimension of every input of a model that batches."""
    if not config.batches:
        return 1
    rows = shapes[0][0] if shapes and shapes[0] else 0
    for spec, shape in zip(config.inputs, shapes, strict=True):
        if not shape:
            raise InvalidRequest(
                f"input '{spec.name}' has no shape but model requires batch dimension for '{config.name}'"
            )
        if shape[0] != rows:
            raise InvalidRequest(f"input '{spec.name}' batch size does not match other inputs for '{config.name}'")
    if rows > config.max_batch_size:
        raise InvalidRequest(f"inference request batch-size must be <= {config.max_batch_size} for '{config.name}'")
    if rows < 1:
        raise InvalidRequest(f"inference request batch-size must be >= 1 for '{config.name}'")
    return rows


def check_shape(config: ModelConfig, spec: TensorSpec, shape: Shape) -> None:
    """Raise InvalidRequest unless an input may have this shape."""
    whole = config.input_shape(spec)
    fits = len(shape) == len(whole) and all(
        got >= 0 and want in (-1, got) for got, want in zip(shape, whole, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' for model '{config.name}'. "
            f"Expected {listed(whole)}, got {listed(shape)}"
        )
    if prod([dim or 1 for dim in shape]) > MAX_ELEMENTS:  # only where a zero makes the tensor empty after all
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' for model '{config.name}': {listed(shape)} is beyond all memory"
        )


def check_input(config: ModelConfig, spec: TensorSpec, shape: Shape, item: InputHead) -> None:
    """Raise InvalidRequest unless a request's input has the datatype, a shape and the size that the model expects."""
    if item.datatype != spec.datatype:
        raise InvalidRequest(
            f"inference input '{spec.name}' data-type is '{item.datatype}', "
            f"but model '{config.name}' expects '{spec.datatype}'"
        )
    check_shape(config, spec, shape)
    given = item.parameters.binary_data_size
    if item.parameters.shared_memory_region is not None:
        given = item.parameters.shared_memory_byte_size
    if given is None or spec.datatype == "BYTES":
        return
    expected = byte_size(spec.datatype, shape)
    if given != expected:
        raise InvalidRequest(
            f"input byte size mismatch for input '{spec.name}' for model '{config.name}'. "
            f"Expected {expected}, got {given}"
        )


def shape_key_of(config: ModelConfig, shapes: tuple[Shape, ...]) -> object:
    """Equal for two requests exactly when their rows may share a batch."""
    return tuple(shape[1:] for shape in shapes) if config.batches else shapes


def inference_input(config: ModelConfig, name: str) -> str:
    """An input as Triton names it in errors about its strings."""
    return f"inference input '{name}' for model '{config.name}'"


def listed(shape: Shape) -> str:
    """A shape as Triton writes it."""
    return "[" + ",".join(map(str, shape)) + "]"


def _quoted(names: "Mapping[str, InputHead] | list[str]") -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
