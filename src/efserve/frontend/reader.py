"""From a stream of bytes to HTTP/1.1 requests: heads, bodies, limits. No I/O; each cut of the stream reads alike."""

from enum import Enum

import numpy as np

from efserve.codec.compression import body_too_large
from efserve.errors import HeadTooLarge, InvalidRequest
from efserve.frontend.chunked import ChunkedDecoder
from efserve.frontend.heads import MAX_HEAD_BYTES, UNREADABLE, Head, Heads

HEAD_STEP_BYTES = 2048
EMPTY = memoryview(b"")
TLS_HANDSHAKE = 0x16  # the first byte of a client that expects TLS


class Phase(Enum):
    """What the next received byte belongs to."""

    HEAD = "head"
    BODY = "body"  # of known length
    CHUNKS = "chunks"
    DONE = "done"  # a whole request has been read and waits to be taken
    CLOSED = "closed"  # nothing: whatever comes is dropped


class RequestReader:
    """Reads one request after the other.

    `feed` consumes bytes until a request is whole (phase DONE), `take` gives it out. A body of known length may also be
    received in place: `room` is where its next bytes belong, `filled` says how many have been put there.
    """

    __slots__ = (
        "_body",
        "_chunks",
        "_filled",
        "_head",
        "_heads",
        "_max_body_bytes",
        "_partial",
        "expects_continue",
        "phase",
    )

    def __init__(self, heads: Heads, max_body_bytes: int) -> None:
        self.phase = Phase.HEAD
        self.expects_continue = False  # the client sends no byte of the body before it is told to
        self._heads = heads
        self._max_body_bytes = max_body_bytes
        self._partial = bytearray()  # the beginning of a head
        self._head = UNREADABLE  # of the body that is being read
        self._body = EMPTY
        self._filled = 0
        self._chunks: ChunkedDecoder | None = None

    @property
    def fresh(self) -> bool:
        """True when the next byte begins a new head."""
        return self.phase is Phase.HEAD and not self._partial

    @property
    def received_bytes(self) -> int:
        """Bytes of the current body so far."""
        return self._filled if self._chunks is None else len(self._chunks.body)

    def feed(self, data: memoryview) -> memoryview:
        """Consume `data` up to the end of the current request at most, and return the rest.

        InvalidRequest when the stream is malformed or beyond a limit; nothing can be read after that.
        """
        while len(data):
            if self.phase is Phase.HEAD:
                data = self._feed_head(data)
            elif self.phase is Phase.BODY:
                part = data[: len(self._body) - self._filled]
                self._body[self._filled : self._filled + len(part)] = part
                self.filled(len(part))
                data = data[len(part) :]
            elif self.phase is Phase.CHUNKS and self._chunks is not None:
                self.expects_continue = False
                data = self._chunks.feed(data)
                if self._chunks.complete:
                    self.phase, self._body = Phase.DONE, memoryview(self._chunks.body)
            else:
                return data if self.phase is Phase.DONE else EMPTY
        return data

    def room(self) -> memoryview:
        """Where the next bytes of the body belong; only in phase BODY."""
        return self._body[self._filled :]

    def filled(self, size_bytes: int) -> bool:
        """Bytes have been put at the beginning of `room()`; returns whether the request is whole now."""
        self.expects_continue = False
        self._filled += size_bytes
        whole = self._filled == len(self._body)
        if whole:
            self.phase = Phase.DONE
        return whole

    def take(self) -> tuple[Head, memoryview]:
        """The request that has been read whole; only in phase DONE."""
        head, body = self._head, self._body
        self.phase, self._body, self._chunks, self._filled = Phase.HEAD, EMPTY, None, 0
        return head, body

    def close(self) -> None:
        """Read no further requests."""
        self.phase, self._body, self._chunks, self._filled = Phase.CLOSED, EMPTY, None, 0
        self._partial = bytearray()
        self.expects_continue = False

    def _feed_head(self, data: memoryview) -> memoryview:
        partial = self._partial
        before = len(partial)
        partial += data[:HEAD_STEP_BYTES]
        if partial.startswith(b"\r\n"):  # an empty line before a request is to be ignored
            del partial[:]
            return data[2 - before :]
        end = partial.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if (end if end > 3 else len(partial)) > MAX_HEAD_BYTES:
            raise HeadTooLarge(f"request head is larger than the limit of {MAX_HEAD_BYTES} bytes")
        if end <= 3:
            if partial[0] == TLS_HANDSHAKE:  # which need not have the end of a line for as long as we would wait
                raise InvalidRequest("a TLS handshake came to a port without TLS")
            return data[HEAD_STEP_BYTES:]
        text = bytes(partial[:end])
        self._partial = bytearray()
        self._begin(self._heads.get(text))
        return data[end - before :]

    def _begin(self, head: Head) -> None:
        size, limit = head.content_length, self._max_body_bytes
        self._head = head
        if size > limit:
            raise body_too_large(limit, size, is_raw=head.header_length == 0)
        if head.expect not in (b"", b"100-continue"):
            raise InvalidRequest(f"Expect is {head.expect.decode('latin-1')!r}, only '100-continue' is known")
        self.expects_continue = bool(head.expect) and (head.chunked or size > 0)
        if head.chunked:
            self.phase, self._chunks = Phase.CHUNKS, ChunkedDecoder(limit)
        elif size:
            # Not a bytearray: that one is filled with zeros, which takes time and real memory before a byte has come.
            self.phase, self._body = Phase.BODY, np.empty(size, np.uint8).data
        else:
            self.phase = Phase.DONE
