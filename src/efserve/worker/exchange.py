"""The gateway's way of a batch: requests -> a slot's inputs and RUN; DONE and a slot's outputs -> outcomes.

Request bytes are written straight to their place in the batch, and each output is copied out once.
"""

from collections.abc import Sequence
from mmap import mmap

from efserve.errors import EfserveError
from efserve.inference import Buffer, InferRequest, Outcome, Outputs, OutputTensor, Wire
from efserve.model_config import ModelConfig
from efserve.tensors import Shape, TensorSpec, bytes_element_ends
from efserve.transport import messages
from efserve.transport.arena import Area
from efserve.transport.messages import DONE_HEAD, Piece

_REMEMBERED = 4096  # layouts; beyond that, shapes vary so much that remembering does not pay


class Exchange:
    """The gateway's view of a worker's slots. What equal batches have in common is worked out once and remembered."""

    def __init__(self, config: ModelConfig, inputs: Sequence[Area], outputs: Sequence[Area]) -> None:
        self._config = config
        self._inputs = inputs
        self._outputs = outputs
        self._has_strings = any(spec.datatype == "BYTES" for spec in config.inputs)
        self._runs: dict[tuple[int, int, tuple[Shape, ...]], tuple[bytes, tuple[int, ...]]] = {}
        self._layouts: dict[bytes, tuple[int, tuple[Piece, ...]]] = {}
        self._unread: dict[int, dict[int, EfserveError]] = {}  # slot -> requests, by identity, of the batch in it

    def write(self, slot: int, requests: Sequence[InferRequest]) -> bytes:
        """Put the requests into the slot as one batch; the RUN message for it. OSError where memory cannot grow."""
        first = requests[0]
        rows = first.rows if len(requests) == 1 else sum([request.rows for request in requests])
        if self._unread:  # of a batch that failed
            self._unread.pop(slot, None)
        key = (slot, rows, first.shapes)
        message, offsets = self._runs.get(key) or self._lay_out(key, requests)
        memory = self._inputs[slot].map
        for index, at in enumerate(offsets):
            for request in requests:
                tensor = request.tensors[index]
                end = at + len(tensor)
                try:
                    memory[at:end] = tensor  # type: ignore[assignment]  # what is no buffer raises
                except TypeError:  # no buffer, but bytes in a client's memory
                    self._fetch(slot, request, tensor, memoryview(memory)[at:end])
                at = end
        return message

    def _fetch(self, slot: int, request: InferRequest, tensor: Wire, target: memoryview) -> None:
        """Copy what lies in a client's memory; where it is gone, the batch runs on zeros in its place."""
        assert not isinstance(tensor, Buffer)
        try:
            tensor.copy_to(target)
        except EfserveError as error:
            target[:] = bytes(len(target))
            self._unread.setdefault(slot, {})[id(request)] = error
        finally:
            target.release()

    def outcomes(self, slot: int, requests: Sequence[InferRequest], done: bytes) -> list[Outcome]:
        """What each request is answered after a DONE message: its outputs, or why its inputs could not be read."""
        unread = self._unread.pop(slot, {})
        outputs = self.read(slot, requests, done)
        if not unread:
            return [*outputs]
        return [unread.get(id(request), found) for request, found in zip(requests, outputs, strict=True)]

    def read(self, slot: int, requests: Sequence[InferRequest], done: bytes) -> list[Outputs]:
        """The outputs of each request, copied out of the slot that a DONE message tells of."""
        layout = done[DONE_HEAD.size :]
        end, pieces = self._layouts.get(layout) or self._understand(layout)
        area = self._outputs[slot]
        area.reach(end)
        memory = area.map
        if len(requests) == 1:
            return [tuple([OutputTensor(shape, memory[at : at + size]) for at, size, shape in pieces])]
        columns = [
            _split_strings(spec, memory, piece, requests)
            if spec.datatype == "BYTES"
            else _split(memory, piece, requests)
            for spec, piece in zip(self._config.outputs, pieces, strict=True)
        ]
        return list(zip(*columns, strict=True))

    def _lay_out(
        self, key: tuple[int, int, tuple[Shape, ...]], requests: Sequence[InferRequest]
    ) -> tuple[bytes, tuple[int, ...]]:
        slot, rows, shapes = key
        if self._config.batches:
            shapes = tuple([(rows, *shape[1:]) for shape in shapes])
        sizes = [sum([len(request.tensors[index]) for request in requests]) for index in range(len(shapes))]
        pieces = messages.place(zip(sizes, shapes, strict=True))
        self._inputs[slot].reserve(messages.end_of(pieces))
        run = (messages.run(slot, pieces), tuple([piece.offset for piece in pieces]))
        if not self._has_strings:  # whose sizes are not told by their shapes
            if len(self._runs) >= _REMEMBERED:
                self._runs.clear()
            self._runs[key] = run
        return run

    def _understand(self, layout: bytes) -> tuple[int, tuple[Piece, ...]]:
        pieces = messages.decode_layout(layout)
        if len(self._layouts) >= _REMEMBERED:
            self._layouts.clear()
        self._layouts[layout] = (messages.end_of(pieces), pieces)
        return self._layouts[layout]


def _split(memory: mmap, piece: Piece, requests: Sequence[InferRequest]) -> list[OutputTensor]:
    at, size_bytes, (rows, *tail) = piece
    row_bytes = size_bytes // rows
    parts = []
    for request in requests:
        own = request.rows
        end = at + own * row_bytes
        parts.append(OutputTensor((own, *tail), memory[at:end]))
        at = end
    return parts


def _split_strings(
    spec: TensorSpec, memory: mmap, piece: Piece, requests: Sequence[InferRequest]
) -> list[OutputTensor]:
    rows, *tail = piece.shape
    data = memory[piece.offset : piece.end]
    count = 1
    for dim in piece.shape:
        count *= dim
    ends = [0, *bytes_element_ends(data, count, f"output '{spec.name}'")]
    row_elements = count // rows
    parts, first = [], 0
    for request in requests:
        last = first + request.rows * row_elements
        parts.append(OutputTensor((request.rows, *tail), data[ends[first] : ends[last]]))
        first = last
    return parts
