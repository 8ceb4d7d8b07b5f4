"""One HTTP/2 connection, as its server or its client: received bytes to events, calls to bytes to send.

Owns streams, windows and the limits that keep a hostile peer from costing more than a connection. Knows nothing of what
the streams carry, no socket and no clock: `calm` is to be called about once a second.
"""

from collections.abc import Sequence

from efserve.codec.http2 import frames as h2
from efserve.codec.http2.events import (
    DataReceived,
    Event,
    HeadReceived,
    QueueSent,
    StreamEnded,
    TrailersReceived,
    WentAway,
)
from efserve.codec.http2.frames import ConnectionFault, ErrorCode, StreamFault
from efserve.codec.http2.headers import Head, HeaderDecoder
from efserve.codec.http2.limits import DEFAULT_LIMITS, Limits
from efserve.codec.http2.outflow import Outflow
from efserve.codec.http2.reader import FrameReader
from efserve.codec.http2.streams import RECEIVING, SENDING, State, Step, Stream
from efserve.inference import Body, Buffer

MAX_REMEMBERED_RESETS = 1024  # streams that we reset, of which frames may still be on their way


class Connection:
    """One end of a connection. After a fault or `close` it is `closed`: what is received then is dropped."""

    __slots__ = (
        "_decoder",
        "_events",
        "_is_client",
        "_last_id",
        "_limits",
        "_next_id",
        "_out",
        "_owed_bytes",
        "_reader",
        "_receive_window",
        "_reset_ids",
        "_resets",
        "_start_window",
        "closed",
        "going_away",
        "pongs",
        "streams",
    )

    def __init__(self, *, client: bool = False, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._is_client = client
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.going_away = False  # we take no more streams
        self.pongs = 0  # answers to our pings
        self._out = Outflow()
        self._decoder = HeaderDecoder(limits.header_bytes)
        self._reader = FrameReader(self, limits, b"" if client else h2.PREFACE)
        self._events: list[Event] = []
        self._last_id = 0  # of the streams that the peer has begun
        self._next_id = 1  # of the streams that we begin
        self._reset_ids: dict[int, None] = {}
        self._resets = 0
        self._start_window = h2.DEFAULT_WINDOW  # of a new stream, until the peer has taken our settings
        self._receive_window = max(limits.connection_window, h2.DEFAULT_WINDOW)
        self._owed_bytes = 0
        self._introduce()

    def __repr__(self) -> str:
        return f"<http2.Connection{' closed' if self.closed else ''}, {len(self.streams)} streams>"

    def _introduce(self) -> None:
        limits, send = self._limits, self._out.buffers.append
        settings = {
            h2.MAX_CONCURRENT_STREAMS: limits.streams,
            h2.INITIAL_WINDOW_SIZE: limits.stream_window,
            h2.MAX_FRAME_SIZE: limits.frame_bytes,
            h2.MAX_HEADER_LIST_SIZE: limits.header_bytes,
        }
        if self._is_client:
            settings = {h2.ENABLE_PUSH: 0, **settings}
            send(h2.PREFACE)
        send(h2.settings_frame(settings))
        if self._receive_window > h2.DEFAULT_WINDOW:
            send(h2.window_update(0, self._receive_window - h2.DEFAULT_WINDOW))

    @property
    def blocked_bytes(self) -> int:
        """Bytes that wait for the peer's windows."""
        return sum([stream.queued_bytes for stream in self._out.blocked.values()])

    @property
    def partial(self) -> bool:
        """True while a frame or a header block is incomplete, or the peer has not introduced itself."""
        return self._reader.partial

    # Sending

    def take(self) -> list[Buffer]:
        """The bytes to send next, in order."""
        buffers, self._out.buffers = self._out.buffers, []
        return buffers

    def begin(self, block: bytes) -> Stream:
        """Begin a stream, as the client, with this header block."""
        stream = Stream(self._next_id, self._out.stream_window, self._start_window)
        self._next_id += 2
        self.streams[stream.id] = stream
        self._out.headers(stream, block, end=False)
        return stream

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send a head or, with `end`, trailers. Does nothing on a stream that has ended."""
        if stream.state in SENDING and not stream.ends:
            self._out.headers(stream, block, end=end)
            self._sent(stream)

    def send_data(self, stream: Stream, parts: Sequence[Buffer], *, end: bool = False) -> None:
        """Send a part of the body. Does nothing on a stream that has ended."""
        if stream.state in SENDING and not stream.ends:
            self._out.data(stream, parts, end=end)
            self._sent(stream)

    def send_answer(self, stream: Stream, head: bytes, message: Sequence[Buffer], trailers: bytes) -> None:
        """Send a whole response: head, body, trailers. Does nothing on a stream that has ended."""
        if stream.state not in SENDING or stream.ends:
            return
        if not self._out.answer(stream, head, message, trailers):
            self._out.headers(stream, head, end=False)
            self._out.data(stream, message, end=False)
            self._out.headers(stream, trailers, end=True)
        self._sent(stream)

    def reset(self, stream: Stream, code: int = ErrorCode.CANCEL) -> None:
        """End a stream at once; no event tells of it any more."""
        if stream.state is not State.CLOSED:
            stream.move(Step.RESET)
            self._forget(stream)
            self._send_reset(stream.id, code)

    def give_back(self, stream: Stream, size_bytes: int) -> None:
        """So many received bytes of a stream have been used: the peer may send as many more."""
        stream.owed_bytes += size_bytes
        if stream.owed_bytes * 2 >= self._limits.stream_window and stream.state in RECEIVING:
            stream.receive_window += stream.owed_bytes
            self._out.buffers.append(h2.window_update(stream.id, stream.owed_bytes))
            stream.owed_bytes = 0

    def ping(self) -> None:
        """Ask the peer for a sign of life; it is counted in `pongs`."""
        self._out.buffers.append(h2.frame(h2.PING, 0, 0, b"efserve\0"))

    def go_away(self) -> None:
        """Take no more streams; those that have begun go on."""
        if not (self.going_away or self.closed):
            self.going_away = True
            self._send_goaway(ErrorCode.NO_ERROR, "")

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """End the connection: a last word, and no more."""
        if not self.closed:
            self.closed = True
            self._send_goaway(code, text)

    def calm(self) -> None:
        """About a second has passed: count resets and control frames anew."""
        self._resets = self._reader.controls = 0

    def _send_goaway(self, code: int, text: str) -> None:
        payload = h2.UINT32.pack(self._last_id) + h2.UINT32.pack(code) + text.encode("utf-8", "replace")
        self._out.buffers.append(h2.frame(h2.GOAWAY, 0, 0, payload))

    def _send_reset(self, stream_id: int, code: int) -> None:
        self._out.reset(stream_id, code)
        if len(self._reset_ids) >= MAX_REMEMBERED_RESETS:
            del self._reset_ids[next(iter(self._reset_ids))]
        self._reset_ids[stream_id] = None

    def _sent(self, stream: Stream) -> None:
        """Our side of a stream may have ended."""
        if stream.state is State.CLOSED:
            del self.streams[stream.id]
        elif stream.state is State.HALF_CLOSED_LOCAL and not self._is_client:
            self.reset(stream, ErrorCode.NO_ERROR)  # the answer is whole: the rest of the request is not needed

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._out.drop(stream)

    # Receiving

    def receive(self, data: Body) -> list[Event]:
        """The events in the next bytes. Never raises for what the peer does: it is told, or cut off."""
        events: list[Event] = []
        self._events = events
        if self.closed:
            return events
        try:
            self._reader.feed(data)
        except ConnectionFault as fault:
            self.close(fault.code, str(fault))
            for stream in list(self.streams.values()):
                self._end(stream, fault.code, str(fault))
        return events

    def on_block(self, stream_id: int, end: int, block: bytes) -> None:
        """See `Sink`."""
        head = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        try:
            if stream is not None:
                self._on_more_headers(stream, head, end)
            elif stream_id not in self._reset_ids:
                self._on_request(stream_id, head, end)
        except StreamFault as fault:
            self._stream_fault(fault)

    def _on_request(self, stream_id: int, head: Head, end: int) -> None:
        if self._is_client or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which cannot begin so")
        if stream_id <= self._last_id:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which is closed")
        if self.going_away:
            self._send_reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        self._last_id = stream_id
        if len(self.streams) >= self._limits.streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams at once")
        if fault := head.request_fault:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, fault)
        stream = Stream(stream_id, self._out.stream_window, self._start_window)
        self.streams[stream_id] = stream
        self._on_head(stream, head, end)

    def _on_head(self, stream: Stream, head: Head, end: int) -> None:
        stream.has_head = True
        stream.missing_bytes = head.content_length
        if end:
            self._received_end(stream)
        self._events.append(HeadReceived(stream, head, bool(end)))

    def _on_more_headers(self, stream: Stream, head: Head, end: int) -> None:
        if stream.state not in RECEIVING:
            raise StreamFault(stream.id, ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
        if not stream.has_head:
            if fault := head.response_fault():
                raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, fault)
            if not head.get(b":status").startswith(b"1"):
                self._on_head(stream, head, end)
            return
        if fault := head.trailers_fault() or ("" if end else "trailers do not end the stream"):
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, fault)
        self._received_end(stream)
        self._events.append(TrailersReceived(stream, head))

    def on_data(self, stream_id: int, data: Body, end: int, size_bytes: int) -> None:
        """See `Sink`."""
        self._receive_window -= size_bytes
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        self._owed_bytes += size_bytes
        if self._owed_bytes * 2 >= self._limits.connection_window:
            self._out.buffers.append(h2.window_update(0, self._owed_bytes))
            self._receive_window += self._owed_bytes
            self._owed_bytes = 0
        stream = self.streams.get(stream_id)
        try:
            if stream is None or stream.state not in RECEIVING:
                self._data_on_closed(stream_id)
                return
            stream.receive_window -= size_bytes
            if stream.receive_window < 0 or stream.missing_bytes >= 0 or not stream.has_head:
                self._check_data(stream, len(data))
            if end:
                self._received_end(stream)
        except StreamFault as fault:
            self._stream_fault(fault)
            return
        if size_bytes != len(data):
            self.give_back(stream, size_bytes - len(data))
        self._events.append(DataReceived(stream, data, bool(end)))

    def _check_data(self, stream: Stream, size_bytes: int) -> None:
        if stream.receive_window < 0:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window allows")
        if not stream.has_head:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "data before the response's head")
        stream.missing_bytes -= size_bytes
        if stream.missing_bytes < 0:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "more data than content-length says")

    def _data_on_closed(self, stream_id: int) -> None:
        self._check_begun(stream_id)
        if stream_id not in self._reset_ids:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "data on a closed stream")

    def _check_begun(self, stream_id: int) -> None:
        """A stream that nobody has begun can have no frames; streams that the client skipped count as closed."""
        begun = stream_id < self._next_id and stream_id & 1 if self._is_client else stream_id <= self._last_id
        if not begun and stream_id not in self._reset_ids:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame on stream {stream_id}, which is idle")

    def _received_end(self, stream: Stream) -> None:
        if stream.missing_bytes > 0:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "fewer data than content-length says")
        stream.move(Step.RECEIVE_END)
        if stream.state is State.CLOSED:
            self._forget(stream)

    def _stream_fault(self, fault: StreamFault) -> None:
        self._count_reset()
        stream = self.streams.get(fault.stream_id)
        self._send_reset(fault.stream_id, fault.code)
        if stream is not None:
            self._end(stream, fault.code, str(fault))

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > self._limits.resets:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

    def _end(self, stream: Stream, code: int, text: str) -> None:
        stream.move(Step.RESET)
        self._forget(stream)
        self._events.append(StreamEnded(stream, code, text))

    # Control frames

    def on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """See `Sink`. Frames of unknown types, and PRIORITY, are ignored."""
        h2.check_control(kind, flags, stream_id, len(payload))
        if kind == h2.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == h2.PING:
            if flags & h2.ACK:
                self.pongs += 1
            else:
                self._out.buffers.append(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.RST_STREAM:
            self._on_reset(stream_id, h2.UINT32.unpack(payload)[0])
        elif kind == h2.GOAWAY:
            last, code = h2.UINT32.unpack_from(payload)[0], h2.UINT32.unpack_from(payload, 4)[0]
            text = payload[8:].decode("utf-8", "replace")
            self._events.append(WentAway(last & h2.LARGEST_STREAM, code, text))

    def _on_reset(self, stream_id: int, code: int) -> None:
        self._check_begun(stream_id)
        self._count_reset()
        if stream := self.streams.get(stream_id):
            self._end(stream, code, "reset by the peer")

    def on_window_update(self, stream_id: int, increment: int) -> None:
        """See `Sink`."""
        stream = self.streams.get(stream_id)
        if stream is None and stream_id:
            self._check_begun(stream_id)
            return
        if not (increment and self._out.widen(stream, increment)):
            text = "a window is opened beyond its limit" if increment else "a window is opened by 0 bytes"
            code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
            if stream is None:
                raise ConnectionFault(code, text)
            self._stream_fault(StreamFault(stream_id, code, text))
        elif self._out.blocked:
            self._pump()

    def _pump(self) -> None:
        for stream in self._out.pump():
            self._events.append(QueueSent(stream))
            self._sent(stream)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            more = self._limits.stream_window - self._start_window
            self._start_window += more
            for stream in self.streams.values():
                stream.receive_window += more
            return
        for key, value in h2.SETTING.iter_unpack(payload):
            h2.check_setting(key, value, is_client=self._is_client)
            if not self._out.set(key, value, self.streams.values()):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window is opened beyond its limit")
        self._out.buffers.append(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._pump()
