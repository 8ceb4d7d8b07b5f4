"""The child's way of a batch: RUN message -> arrays over shared memory -> engine -> checked outputs -> answer.

Equal messages mean equal layouts, so what a message means is worked out once and remembered.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns

import numpy as np

from efserve.engines.base import Engine
from efserve.errors import DeviceLost, EfserveError, InferenceFailed, LoadFailed
from efserve.tensors import ABSENT, ABSENT_DIM, NUMPY_DTYPES, Array, Shape, TensorSpec, byte_size, to_array, to_wire
from efserve.transport import messages
from efserve.transport.arena import Area
from efserve.transport.messages import Piece

_REMEMBERED = 1024  # messages; beyond that, shapes vary so much that remembering does not pay


@dataclass(slots=True)
class _Batch:
    """What one RUN message means."""

    slot: int
    rows: int  # 1 where the model does not batch
    inputs: list[Array]  # over shared memory; BYTES are decoded anew each time
    strings: list[tuple[int, Piece]]  # (index, place) of the BYTES inputs
    bound: Callable[[], object] | None  # computes right into the output area
    layout: bytes  # of the outputs: always where bound, else of the last ones
    kinds: list[tuple[Shape, np.dtype[np.generic]]] | None = None  # of the last outputs, where not bound
    targets: list[Array] = field(default_factory=list)  # where outputs of these kinds go


class Executor:
    """Runs batches on one engine; owns the child's view of the slots."""

    def __init__(self, engine: Engine, inputs: Sequence[Area], outputs: Sequence[Area]) -> None:
        self._engine = engine
        self._config = engine.config
        self._inputs = inputs
        self._outputs = outputs
        self._known: dict[bytes, _Batch] = {}
        self._has_string_outputs = any(spec.datatype == "BYTES" for spec in self._config.outputs)
        self._static_outputs = all(spec.is_static for spec in self._config.outputs)

    def run(self, message: bytes) -> bytes:
        """Answer one RUN message; whatever the engine raises becomes an ERROR message for this batch alone.

        But for DeviceLost, with which no further batch could run: it is raised.
        """
        try:
            return self._run(message)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - the border of a worker step: a model may raise anything
            return messages.error(message[1], describe(error))

    def warm_up(self) -> None:
        """Run every batch size (1, 2, 4, ..., maximum) as often as the engine needs, as if the gateway had sent it.

        Raises what the engine raises. Free dimensions are taken as 1 and strings as empty, which a model may reject:
        that is no failure.
        """
        specs = self._config.inputs
        for rows in _batch_sizes(self._config.max_rows):
            shapes = [self._shape(spec, rows) for spec in specs]
            pieces = messages.place(
                (_zeros_size(spec, shape), shape) for spec, shape in zip(specs, shapes, strict=True)
            )
            self._inputs[0].reserve(messages.end_of(pieces))  # new memory: zeros, which also encode empty strings
            for _ in range(self._engine.warmup_runs):
                try:
                    self._run(messages.run(0, pieces))
                except Exception:
                    if all(spec.is_static for spec in specs):
                        raise
                    return

    def run_sample(self, name: str, tensors: Sequence[tuple[Shape, bytes]], count: int) -> None:
        """Run one batch of these tensors, in the order of the inputs, `count` times.

        Raises LoadFailed, in Triton's words, when the engine raises.
        """
        area = self._inputs[0]
        pieces = messages.place([(len(data), shape) for shape, data in tensors])
        area.reserve(messages.end_of(pieces))
        for (_, data), piece in zip(tensors, pieces, strict=True):
            area.map[piece.offset : piece.end] = data
        try:
            for _ in range(count):
                self._run(messages.run(0, pieces))
        except DeviceLost:
            raise
        except Exception as error:  # the border of a worker step: a model may raise anything
            raise LoadFailed(f"failed to run warmup sample '{name}': {describe(error)};") from error

    def _run(self, message: bytes) -> bytes:
        start_ns = monotonic_ns()
        batch = self._known.get(message) or self._understand(message)
        if batch.bound is not None:
            input_ns = monotonic_ns()
            batch.bound()
            infer_ns = monotonic_ns()
            layout = batch.layout
        else:
            inputs = self._arrays(batch) if batch.strings else batch.inputs
            input_ns = monotonic_ns()
            outputs = self._engine.infer(inputs)
            infer_ns = monotonic_ns()
            layout = self._store(batch, outputs)
        head = messages.DONE_HEAD.pack(
            messages.DONE, batch.slot, start_ns, input_ns, infer_ns, monotonic_ns(), self._engine.device_ns
        )
        return head + layout

    def _check(self, rows: int, outputs: Sequence[Array]) -> None:
        """InferenceFailed unless the outputs are what the config promises for `rows` rows."""
        for spec, array in zip(self._config.outputs, outputs, strict=True):
            dtype = NUMPY_DTYPES[spec.datatype]
            if array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind in "SU"):
                raise InferenceFailed(f"output '{spec.name}' is {array.dtype}, the config says {spec.datatype}")
            expected = (rows, *spec.dims) if self._config.batches else spec.dims
            if len(array.shape) != len(expected) or any(
                dim not in (-1, found) for dim, found in zip(expected, array.shape, strict=True)
            ):
                raise InferenceFailed(
                    f"output '{spec.name}' has shape {list(array.shape)}, expected {list(expected)}"
                    + (f" for a batch of {rows}" if self._config.batches else "")
                )

    def _understand(self, message: bytes) -> _Batch:
        slot, pieces = message[1], messages.decode_layout(message, 2)
        rows = pieces[0].shape[0] if self._config.batches else 1
        area = self._inputs[slot]
        area.reach(messages.end_of(pieces))
        inputs: list[Array] = []
        strings = []
        for index, (spec, piece) in enumerate(zip(self._config.inputs, pieces, strict=True)):
            if piece.shape[-1:] == (ABSENT_DIM,):
                inputs.append(ABSENT)
            elif spec.datatype == "BYTES":
                strings.append((index, piece))
                inputs.append(np.empty(0, np.object_))
            else:
                inputs.append(_over(area, spec, piece))
        bound, layout = None, b""
        if self._static_outputs and not strings:
            bound, layout = self._bind(slot, rows, inputs)
        batch = _Batch(slot, rows, inputs, strings, bound, layout)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[message] = batch
        return batch

    def _bind(self, slot: int, rows: int, inputs: list[Array]) -> tuple[Callable[[], object] | None, bytes]:
        shapes = [self._shape(spec, rows) for spec in self._config.outputs]
        pieces = messages.place(
            (byte_size(spec.datatype, shape), shape) for spec, shape in zip(self._config.outputs, shapes, strict=True)
        )
        return self._engine.bind(inputs, self._targets(slot, pieces)), messages.encode_layout(pieces)

    def _arrays(self, batch: _Batch) -> list[Array]:
        inputs = list(batch.inputs)
        area = self._inputs[batch.slot]
        for index, piece in batch.strings:
            name = self._config.inputs[index].name
            inputs[index] = to_array(area.map[piece.offset : piece.end], "BYTES", piece.shape, f"input '{name}'")
        return inputs

    def _store(self, batch: _Batch, outputs: Sequence[Array]) -> bytes:
        kinds = [(array.shape, array.dtype) for array in outputs]
        if kinds != batch.kinds:
            self._check(batch.rows, outputs)
            if self._has_string_outputs:  # whose sizes are not told by their kinds
                return self._store_strings(batch.slot, outputs)
            pieces = messages.place((array.nbytes, array.shape) for array in outputs)
            batch.targets = self._targets(batch.slot, pieces)
            batch.layout = messages.encode_layout(pieces)
            batch.kinds = kinds
        for target, array in zip(batch.targets, outputs, strict=True):
            np.copyto(target, array)
        return batch.layout

    def _store_strings(self, slot: int, outputs: Sequence[Array]) -> bytes:
        area = self._outputs[slot]
        wires = [to_wire(array) for array in outputs]
        pieces = messages.place((len(wire), array.shape) for wire, array in zip(wires, outputs, strict=True))
        area.reserve(messages.end_of(pieces))
        for wire, piece in zip(wires, pieces, strict=True):
            area.map[piece.offset : piece.end] = wire
        return messages.encode_layout(pieces)

    def _targets(self, slot: int, pieces: Sequence[Piece]) -> list[Array]:
        area = self._outputs[slot]
        area.reserve(messages.end_of(pieces))
        return [_over(area, spec, piece) for spec, piece in zip(self._config.outputs, pieces, strict=True)]

    def _shape(self, spec: TensorSpec, rows: int) -> Shape:
        dims = tuple([1 if dim < 0 else dim for dim in spec.dims])
        return (rows, *dims) if self._config.batches else dims


def describe(error: Exception) -> str:
    """What to tell of an exception: our own sentences as they are, foreign ones with their type."""
    return str(error) if isinstance(error, EfserveError) else f"{type(error).__name__}: {error}"


def _batch_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, ... and the maximum."""
    return sorted({1 << power for power in range(max_batch.bit_length())} | {max_batch})


def _zeros_size(spec: TensorSpec, shape: Shape) -> int:
    return 4 * math.prod(shape) if spec.datatype == "BYTES" else byte_size(spec.datatype, shape)


def _over(area: Area, spec: TensorSpec, piece: Piece) -> Array:
    array: Array = np.frombuffer(area.map, NUMPY_DTYPES[spec.datatype], math.prod(piece.shape), piece.offset)
    return array.reshape(piece.shape)
