"""Chunked transfer coding, decoded strictly and incrementally (RFC 9112, section 7.1)."""

from efserve.codec.compression import body_too_large
from efserve.errors import InvalidRequest

MAX_LINE_BYTES = 4096  # a chunk's size with its extensions, or one trailer
MAX_CHUNKS = 65_536  # Triton's limit
MAX_TRAILER_BYTES = 16 * 1024
_HEX = frozenset(b"0123456789abcdefABCDEF")


class ChunkedDecoder:
    """Gathers the body of one chunked request; extensions and trailers are read and dropped.

    `body` never grows beyond `max_bytes`: the chunk that would exceed it is refused when its size is read.
    """

    def __init__(self, max_bytes: int) -> None:
        self.body = bytearray()
        self.complete = False
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._chunks = 0
        self._left = 0  # bytes of the current chunk, its CR LF included
        self._trailer_bytes = -1  # -1: not in the trailer yet

    def feed(self, data: memoryview) -> memoryview:
        """Take what belongs to this body and return the rest; InvalidRequest when it is malformed or too large."""
        while len(data) and not self.complete:
            data = self._feed_chunk(data) if self._left else self._feed_line(data)
        return data

    def _feed_chunk(self, data: memoryview) -> memoryview:
        of_body = self._left - 2
        if of_body > 0:
            part = data[:of_body]
            self.body += part
            self._left -= len(part)
            return data[len(part) :]
        if data[0] != (0x0D if self._left == 2 else 0x0A):
            raise InvalidRequest("malformed chunked body: a chunk does not end with CR LF")
        self._left -= 1
        return data[1:]

    def _feed_line(self, data: memoryview) -> memoryview:
        piece = bytes(data[: MAX_LINE_BYTES + 2])
        end = piece.find(b"\n")
        taken = end + 1 if end >= 0 else len(piece)
        self._line += piece[:taken]
        if len(self._line) > MAX_LINE_BYTES:
            raise InvalidRequest(f"malformed chunked body: a line is longer than {MAX_LINE_BYTES} bytes")
        if end >= 0:
            line, self._line = bytes(self._line), bytearray()
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise InvalidRequest("malformed chunked body: a line does not end with CR LF")
            if self._trailer_bytes < 0:
                self._begin_chunk(line[:-2])
            else:
                self._read_trailer(line[:-2])
        return data[taken:]

    def _begin_chunk(self, line: bytes) -> None:
        digits = line.split(b";", 1)[0].rstrip(b" \t")
        if not digits or len(digits) > 16 or not _HEX.issuperset(digits):
            raise InvalidRequest(
                f"malformed chunked body: chunk size {digits[:32].decode('latin-1')!r} is no hex number"
            )
        size = int(digits, 16)
        if size == 0:
            self._trailer_bytes = 0
        elif len(self.body) + size > self._max_bytes:
            raise body_too_large(self._max_bytes)
        else:
            self._left = size + 2
            self._chunks += 1
            if self._chunks > MAX_CHUNKS:
                raise InvalidRequest(
                    f"Chunked request body exceeds maximum of {MAX_CHUNKS} non-empty chunks. Send fewer or larger HTTP "
                    "chunks."
                )

    def _read_trailer(self, line: bytes) -> None:
        self.complete = not line
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise InvalidRequest(f"malformed chunked body: its trailer is longer than {MAX_TRAILER_BYTES} bytes")
