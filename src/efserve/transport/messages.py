"""The messages between the gateway and a worker, as bytes: the first byte is the tag.

`RUN slot layout` and `DONE slot timing layout` are the hot ones. A layout is a list of `Piece`: where each tensor lies
in the slot's area, and its shape. Equal batches have equal bytes, so both sides may remember what they made of them.
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from efserve.tensors import Shape, TensorSpec

Value = TypeVar("Value")

READY, FAILED, RUN, DONE, ERROR, STOP, PROGRESS = range(1, 8)

MAX_TEXT_BYTES = 8192
MAX_MESSAGE_BYTES = 65536  # well inside a socket's default buffer of 208 kB
ALIGNMENT_BYTES = 64

DONE_HEAD = struct.Struct("<BB5Q")  # tag, slot, the fields of BatchTiming
_PIECE = struct.Struct("<QQB")
_READY = struct.Struct("<BQ")


class Piece(NamedTuple):
    """One tensor of a batch: `size_bytes` wire bytes at `offset` of its area."""

    offset: int
    size_bytes: int
    shape: Shape

    @property
    def end(self) -> int:
        """Offset behind the tensor."""
        return self.offset + self.size_bytes


def place(sizes: Iterable[tuple[int, Shape]]) -> tuple[Piece, ...]:
    """Pieces for tensors of these sizes and shapes, one behind the other, each at an aligned offset."""
    pieces, at = [], 0
    for size_bytes, shape in sizes:
        pieces.append(Piece(at, size_bytes, shape))
        at = -(-(at + size_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(pieces)


def end_of(pieces: Sequence[Piece]) -> int:
    """Bytes that an area must have to hold the pieces."""
    return max((piece.end for piece in pieces), default=0)


def encode_layout(pieces: Iterable[Piece]) -> bytes:
    """Pieces as bytes, for RUN and DONE."""
    return b"".join(
        [_PIECE.pack(p.offset, p.size_bytes, len(p.shape)) + struct.pack(f"<{len(p.shape)}q", *p.shape) for p in pieces]
    )


def decode_layout(data: bytes, at: int = 0) -> tuple[Piece, ...]:
    """Inverse of `encode_layout`, from offset `at`; struct.error where the bytes are no layout."""
    pieces = []
    while at < len(data):
        offset, size_bytes, rank = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        pieces.append(Piece(offset, size_bytes, struct.unpack_from(f"<{rank}q", data, at)))
        at += 8 * rank
    return tuple(pieces)


def layout_fits(specs: Sequence[TensorSpec]) -> bool:
    """True when a message about these tensors (batch dimension not counted in their dims) fits a packet."""
    needed = sum(_PIECE.size + 8 * (1 + len(spec.dims)) for spec in specs)
    return needed + DONE_HEAD.size <= MAX_MESSAGE_BYTES


def run(slot: int, pieces: Iterable[Piece]) -> bytes:
    """RUN: the slot's inputs lie at these pieces."""
    return bytes((RUN, slot)) + encode_layout(pieces)


def error(slot: int, text: str) -> bytes:
    """ERROR: the batch of this slot failed, and why (cut where it is too long)."""
    return bytes((ERROR, slot)) + text.encode(errors="replace")[:MAX_TEXT_BYTES]


def failed(text: str) -> bytes:
    """FAILED: the model could not be loaded, and why (cut where it is too long)."""
    return bytes((FAILED,)) + text.encode(errors="replace")[:MAX_TEXT_BYTES]


def progress(text: str) -> bytes:
    """PROGRESS: the load goes on, and how far it is; the deadline for READY counts anew."""
    return bytes((PROGRESS,)) + text.encode(errors="replace")[:MAX_TEXT_BYTES]


def stop() -> bytes:
    """STOP: end when the batches sent before are answered."""
    return bytes((STOP,))


def text_of(message: bytes) -> str:
    """The text of ERROR, FAILED and PROGRESS."""
    return message[2 if message[0] == ERROR else 1 :].decode(errors="replace")


def ready(size_bytes: int) -> bytes:
    """READY: what the worker says of itself is the JSON in the first `size_bytes` of slot 0's outputs."""
    return _READY.pack(READY, size_bytes)


def ready_bytes(message: bytes) -> int:
    """Bytes of JSON that READY announces."""
    size: int = _READY.unpack(message)[1]
    return size


def to_json(value: object) -> bytes:
    """A frozen dataclass as JSON."""
    return msgspec.json.encode(value, enc_hook=str)


def from_json(data: bytes, kind: type[Value]) -> Value:
    """Inverse of `to_json`."""
    return msgspec.json.decode(data, type=kind, dec_hook=_from_text)


def _from_text(kind: type[Any], text: object) -> object:
    if kind is Path and isinstance(text, str):
        return Path(text)
    raise TypeError(f"no {kind.__name__} in a message")
