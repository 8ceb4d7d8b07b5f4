"""From a stream of bytes to frames with meaning: the preface, frames in pieces, header blocks over several frames."""

from typing import Protocol

from efserve.codec.http2 import frames as h2
from efserve.codec.http2.frames import ConnectionFault, ErrorCode
from efserve.codec.http2.limits import Limits
from efserve.inference import Body


class Sink(Protocol):
    """Who hears of frames; ConnectionFault, raised by any of these, ends the reading."""

    def on_data(self, stream_id: int, data: Body, end: int, size_bytes: int) -> None:
        """Data, or a part of them: `size_bytes` with the padding."""

    def on_block(self, stream_id: int, end: int, block: bytes) -> None:
        """A whole header block."""

    def on_window_update(self, stream_id: int, increment: int) -> None:
        """A WINDOW_UPDATE frame."""

    def on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any other frame."""


class FrameReader:
    """Reads one connection. What arrives of an unpadded DATA frame is passed on at once; other frames when whole."""

    __slots__ = (
        "_block",
        "_data",
        "_limits",
        "_needed",
        "_pending",
        "_plain_bytes",
        "_preface",
        "_settings_seen",
        "_sink",
        "controls",
    )

    def __init__(self, sink: Sink, limits: Limits, preface: bytes) -> None:
        self._sink = sink
        self._limits = limits
        self._preface = preface  # still to come; empty when it has come
        self._settings_seen = False
        self._pending = bytearray()  # the beginning of a frame
        self._needed = 0  # bytes that must be pending before it is worth a look
        self._data: tuple[int, int, int] | None = None  # of a DATA frame: stream, END_STREAM, bytes to come
        self._block: tuple[int, int, bytearray] | None = None  # stream, END_STREAM, header block so far
        self._plain_bytes = 0  # frames with content up to here need no check in the present state
        self.controls = 0  # frames without content

    @property
    def partial(self) -> bool:
        """True while a frame or a header block is incomplete, or the peer has not introduced itself."""
        return bool(self._pending or self._block or self._data or not self._settings_seen)

    def feed(self, data: Body) -> None:
        """Read the next bytes; raises ConnectionFault, after which nothing more can be read."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data, self._pending = bytes(self._pending), bytearray()
        at = self._skip_preface(data) if self._preface else 0
        at = self._frames(data, at)
        if at < len(data):
            self._pending += data[at:]

    def _skip_preface(self, data: Body) -> int:
        text = bytes(data[: len(self._preface)])
        if not self._preface.startswith(text):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with HTTP/2's preface")
        self._preface = self._preface[len(text) :]
        return len(text)

    def _frames(self, data: Body, at: int) -> int:
        """Handle what is there; returns where the first frame begins that is not whole."""
        size, unpack, sink = len(data), h2.HEAD.unpack_from, self._sink
        if self._data is not None:
            at = self._more_data(data, at)
        while size - at >= h2.HEAD_BYTES:
            head, flags, stream_id = unpack(data, at)
            kind, payload_bytes = head & 255, head >> 8
            stream_id &= h2.LARGEST_STREAM
            start = at + h2.HEAD_BYTES
            end = start + payload_bytes
            if kind == h2.WINDOW_UPDATE and payload_bytes == 4 and size >= end and self._plain_bytes:
                sink.on_window_update(stream_id, h2.UINT32.unpack_from(data, start)[0] & h2.LARGEST_WINDOW)
                at = end
                continue
            if not (kind <= h2.HEADERS and stream_id and 0 < payload_bytes <= self._plain_bytes):
                self._check(kind, flags, stream_id, payload_bytes)
            if end > size:
                if kind == h2.DATA and not flags & h2.PADDED:
                    self._data = (stream_id, flags & h2.END_STREAM, payload_bytes)
                    return self._more_data(data, start)
                self._needed = end - at
                return at
            if kind == h2.DATA:
                payload = h2.without_padding(flags, data[start:end])
                sink.on_data(stream_id, payload, flags & h2.END_STREAM, payload_bytes)
            elif kind == h2.HEADERS:
                self._on_headers(flags, stream_id, data[start:end])
            elif kind == h2.CONTINUATION:
                self._on_continuation(flags, data[start:end])
            else:
                sink.on_control(kind, flags, stream_id, bytes(data[start:end]))
            at = end
        self._needed = h2.HEAD_BYTES
        return at

    def _check(self, kind: int, flags: int, stream_id: int, size: int) -> None:
        """What can be judged before a frame is whole."""
        if size > self._limits.frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes is larger than was agreed")
        if not self._settings_seen:
            if kind != h2.SETTINGS or flags & h2.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_seen = True
            self._plain_bytes = min(self._limits.frame_bytes, self._limits.header_bytes)
        if self._block is not None and (kind != h2.CONTINUATION or stream_id != self._block[0]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")
        if kind in (h2.DATA, h2.HEADERS, h2.CONTINUATION):
            if not stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data or headers on stream 0")
            if kind != h2.DATA:
                self._check_block(size)
        if (kind > h2.HEADERS and kind != h2.WINDOW_UPDATE) or not (size or flags & h2.END_STREAM):
            self.controls += 1
            if self.controls > self._limits.controls:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without content")

    def _check_block(self, size: int) -> None:
        if size + (len(self._block[2]) if self._block else 0) > self._limits.header_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")

    def _more_data(self, data: Body, at: int) -> int:
        assert self._data is not None
        stream_id, end, left = self._data
        part = data[at : at + left]
        if len(part) == left:
            self._data = None
            self._sink.on_data(stream_id, part, end, left)
        elif len(part):
            self._data = (stream_id, end, left - len(part))
            self._sink.on_data(stream_id, part, 0, len(part))
        return at + len(part)

    def _on_headers(self, flags: int, stream_id: int, payload: Body) -> None:
        payload = h2.without_padding(flags, payload)
        if flags & h2.WITH_PRIORITY:  # which is deprecated, and ignored here
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame is shorter than its priority")
            payload = payload[5:]
        if flags & h2.END_HEADERS:
            self._sink.on_block(stream_id, flags & h2.END_STREAM, bytes(payload))
        else:
            self._block = (stream_id, flags & h2.END_STREAM, bytearray(payload))
            self._plain_bytes = 0

    def _on_continuation(self, flags: int, payload: Body) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        stream_id, end, block = self._block
        block += payload
        if flags & h2.END_HEADERS:
            self._block = None
            self._plain_bytes = min(self._limits.frame_bytes, self._limits.header_bytes)
            self._sink.on_block(stream_id, end, bytes(block))
