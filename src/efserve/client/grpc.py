"""gRPC on connections of our own: calls on one HTTP/2 connection, and such a connection for load.

Messages are bytes here; what they mean is `v2_grpc.py`. No task and no future per request.
"""

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import cast

from efserve.client.connection import CLOSED, CONNECT, GARBLED, RESET, Listener
from efserve.client.endpoint import GrpcEndpoint, reason_of
from efserve.codec.grpc import CallFailed, MessageReader, Status, message_text
from efserve.codec.http2.connection import Connection
from efserve.codec.http2.events import DataReceived, Event, HeadReceived, StreamEnded, TrailersReceived
from efserve.codec.http2.headers import Head, encode_headers
from efserve.codec.http2.limits import Limits
from efserve.codec.http2.streams import Stream
from efserve.inference import Body

SERVICE = "inference.GRPCInferenceService"
MAX_MESSAGE_BYTES = (1 << 31) - 1
# Answers are taken as fast as they come, so nothing is gained by small windows.
_LIMITS = Limits(stream_window=16 << 20, connection_window=64 << 20, frame_bytes=1 << 20)


def call_head(endpoint: GrpcEndpoint, method: str) -> bytes:
    """The header block of every call of one method of the protocol's service."""
    return encode_headers(
        [
            (b":method", b"POST"),
            (b":scheme", b"https" if endpoint.tls else b"http"),
            (b":path", f"/{SERVICE}/{method}".encode()),
            (b":authority", endpoint.authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"efserve"),
        ]
    )


class Reply:
    """What comes back on one call: each message, and once, after them, the status."""

    __slots__ = ("_on_end", "_on_message", "_reader")

    def __init__(self, on_message: Callable[[Body], None], on_end: Callable[[int, str], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._reader = MessageReader(MAX_MESSAGE_BYTES)

    def take(self, data: Body) -> None:
        """A part of the answer; raises CallFailed for what is no message."""
        for message in self._reader.feed(data):
            self._on_message(message)

    def end(self, status: int, text: str) -> None:
        """The call is over."""
        self._on_end(status, text)


class Channel(asyncio.Protocol):
    """One HTTP/2 connection to a server. `on_closed` is told why when it ends unasked."""

    def __init__(self, on_opened: Callable[[], None], on_closed: Callable[[str, str], None]) -> None:
        self._codec = Connection(client=True, limits=_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._dropped = False

    def begin(self, head: bytes, reply: Reply) -> Stream:
        """Begin a call; what it sends goes out with `send`."""
        stream = self._codec.begin(head)
        stream.call = reply
        return stream

    def send(self, stream: Stream, message: bytes, *, last: bool) -> None:
        """Send one message, with its prefix."""
        self._codec.send_data(stream, [message] if message else [], end=last)
        self._flush()

    def drop(self) -> None:
        """Close in silence."""
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._dropped:
            self._transport.abort()
        else:
            self._on_opened()
            self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._codec.receive(data):
            if not (self._codec.closed and isinstance(event, StreamEnded)):
                self._handle(event)
        self._flush()
        if self._codec.closed and not self._dropped:
            self._closed(GARBLED, "the server does not speak HTTP/2 as it should; is it the gRPC port?")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._dropped:
            text = f"the connection broke: {exc}" if exc else "the server closed the connection without an answer"
            self._closed(RESET if exc else CLOSED, text)

    def _closed(self, kind: str, text: str) -> None:
        self.drop()
        self._on_closed(kind, text)

    def _flush(self) -> None:
        if self._transport is not None and not self._dropped:
            self._transport.writelines(self._codec.take())

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._codec.give_back(event.stream, len(event.data))
            try:
                event.stream.call.take(event.data)
            except CallFailed as exc:
                self._codec.reset(event.stream)
                event.stream.call.end(exc.status, str(exc))
                return
            if event.ended:
                event.stream.call.end(Status.UNKNOWN, "the answer ends without a status")
        elif isinstance(event, TrailersReceived):
            event.stream.call.end(*_status(event.head))
        elif isinstance(event, HeadReceived):
            if event.ended:
                event.stream.call.end(*_status(event.head))
        elif isinstance(event, StreamEnded):
            event.stream.call.end(Status.UNAVAILABLE, f"the call was cut off: {event.text}")


def _status(head: Head) -> tuple[int, str]:
    status = head.get(b"grpc-status")
    if not status.isdigit() or len(status) > 3:
        http_status = head.get(b":status").decode("latin-1") or "no status"
        return Status.UNKNOWN, f"the answer is not gRPC's: {http_status}"
    return int(status), message_text(head.get(b"grpc-message"))


class GrpcConnection:
    """A `Connection` over gRPC: unary calls of ModelInfer. The listener hears 200 for OK, and else gRPC's status.

    `payload_of` tells how many bytes of tensors an answer has.
    """

    protocol = "grpc"

    def __init__(self, endpoint: GrpcEndpoint, listener: Listener, payload_of: Callable[[Body], int]) -> None:
        self.start_ns = self.due_ns = 0
        self.model = 0
        self.busy = False  # a request is under way
        self._endpoint = endpoint
        self._head = call_head(endpoint, "ModelInfer")
        self._listener = listener
        self._payload_of = payload_of
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._unsent = b""
        self._answer: Body = b""
        self._text = ""

    def __repr__(self) -> str:
        state = "open" if self._is_open else "opening" if self._opening else "closed"
        return f"<GrpcConnection {self._endpoint.url} {state}{' busy' if self.busy else ''}>"

    def send(self, request: bytes) -> None:
        """Send one ModelInferRequest, serialized, with gRPC's prefix."""
        self.busy = True
        if self._is_open:
            self._call(request)
        else:
            self._unsent = request
            self._opening = asyncio.get_running_loop().create_task(self._open())

    def abort(self, kind: str, text: str) -> None:
        """Give up the request under way, if any, with this failure."""
        self._drop()
        if self.busy:
            self.busy = False
            self._listener.on_failure(self, kind, text, monotonic_ns())

    def close(self) -> None:
        """Drop the connection in silence."""
        self.busy = False
        self._drop()

    def error_text(self) -> str:
        """The text of the last answer that was not OK."""
        return self._text

    async def _open(self) -> None:
        channel = self._channel = Channel(self._opened, self.abort)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: channel, self._endpoint.host, self._endpoint.port, ssl=self._endpoint.tls
            )
        except OSError as exc:
            self._opening = None
            self.abort(CONNECT, reason_of(exc))

    def _opened(self) -> None:
        self._opening, self._is_open = None, True
        request, self._unsent = self._unsent, b""
        self._call(request)

    def _call(self, request: bytes) -> None:
        assert self._channel is not None
        self._answer = b""
        stream = self._channel.begin(self._head, Reply(self._received, self._ended))
        self._channel.send(stream, request, last=True)

    def _received(self, message: Body) -> None:
        self._answer = message

    def _ended(self, status: int, text: str) -> None:
        if self.busy:
            end_ns = monotonic_ns()
            self.busy = False
            self._text = text
            payload_bytes = self._payload_of(self._answer) if status == Status.OK else -1
            self._listener.on_answer(self, 200 if status == Status.OK else status, payload_bytes, end_ns)

    def _drop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        channel, self._channel, self._opening, self._is_open = self._channel, None, None, False
        if channel is not None:
            channel.drop()
