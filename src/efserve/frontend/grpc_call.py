"""One gRPC call: its messages in and out, compression, deadline, cancellation, and how it ends."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from efserve.codec.grpc import (
    COMPRESSED_HEADS,
    ENCODINGS,
    OK_TRAILERS,
    PREFIX_BYTES,
    RESPONSE_HEAD,
    CallFailed,
    MessageReader,
    Status,
    compressed,
    status_of,
    timeout_s,
    trailers,
)
from efserve.codec.http2.headers import Head, encode_headers
from efserve.codec.http2.streams import Stream
from efserve.errors import EfserveError, InvalidRequest
from efserve.frontend.http2 import JOINED_BYTES, Http2Connection
from efserve.inference import Body, Buffer, InferRequest

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256  # unanswered requests of one streaming call, from which on its window is not opened any more
MAX_QUEUED_BYTES = 1 << 20  # of answers that the client does not take, likewise
INTERNAL = CallFailed(Status.INTERNAL, "internal error; the server's log has the details")


@dataclass(frozen=True, slots=True)
class Method:
    """One method: what to do with each message. One that streams in may have many, and answers until it ends."""

    name: str
    on_message: "Callable[[Call, Body], None]"
    streams_in: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """What a request's head says, worked out once; `refusal` is the header block that answers it at once."""

    method: Method | None
    refusal: bytes = b""
    encoding: str = ""
    answer_encoding: str = ""  # the client's own, where it also takes it
    timeout_s: float | None = None
    authorization: bytes = b""
    strict: bool = False  # an error ends a streaming call, instead of being a message in it


def resolve(head: Head, methods: dict[bytes, Method]) -> Route:
    """The route of every request with this head."""
    if head.get(b":method") != b"POST":
        return Route(None, encode_headers([(b":status", b"405")]))
    if not head.get(b"content-type").startswith(b"application/grpc"):
        return Route(None, encode_headers([(b":status", b"415")]))
    path = head.get(b":path")
    method = methods.get(path)
    if method is None:
        return _refused(Status.UNIMPLEMENTED, f"this server has no method {path.decode('latin-1')}")
    encoding = head.get(b"grpc-encoding").decode("latin-1")
    if encoding not in ("", "identity", *ENCODINGS):
        text = f"grpc-encoding '{encoding}' is not supported; expected identity, deflate or gzip"
        return _refused(Status.UNIMPLEMENTED, text)
    accepted = [item.strip() for item in head.get(b"grpc-accept-encoding").decode("latin-1").split(",")]
    timeout = head.get(b"grpc-timeout")
    try:
        limit_s = timeout_s(timeout) if timeout else None
    except InvalidRequest as exc:
        return _refused(Status.INTERNAL, str(exc))
    strict = head.get(b"triton_grpc_error").lower() == b"true"
    encoding = encoding if encoding in ENCODINGS else ""
    answer_encoding = encoding if encoding in accepted else ""
    return Route(method, b"", encoding, answer_encoding, limit_s, head.get(b"authorization"), strict)


def _refused(status: Status, text: str) -> Route:
    return Route(None, trailers(status, text, alone=True))


class Call:
    """A call under way. It is over (`is_open` is False) when its last word is said or the client has gone.

    `requests` are the inferences under way for it; `state` belongs to the method.
    """

    __slots__ = (
        "_connection",
        "_has_message",
        "_has_started",
        "_is_whole",
        "_max_bytes",
        "_message",
        "_method",
        "_reader",
        "_route",
        "_stream",
        "_timer",
        "_withheld_bytes",
        "draining",
        "is_open",
        "on_close",
        "request",
        "requests",
        "state",
    )

    def __init__(
        self, connection: Http2Connection, stream: Stream, route: Route, method: Method, max_bytes: int
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._route = route
        self._method = method
        self._max_bytes = max_bytes
        self._reader: MessageReader | None = None
        self._message: Body = b""
        self._has_message = self._has_started = self._is_whole = False
        self._withheld_bytes = 0
        self.is_open = True
        self.draining = False
        self.request: InferRequest | None = None
        self.requests: dict[int, InferRequest] | None = None
        self.state: Any = None
        self.on_close: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if route.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(route.timeout_s, self._expire)

    def __repr__(self) -> str:
        return f"<Call {self._method.name} on stream {self._stream.id}{'' if self.is_open else ', over'}>"

    @property
    def strict(self) -> bool:
        """True when an error ends a streaming call."""
        return self._route.strict

    @property
    def authorization(self) -> bytes:
        """What the client says to be allowed to do this."""
        return self._route.authorization

    @property
    def is_local(self) -> bool:
        """Whether the client is on this machine."""
        return self._connection.is_local

    # What the client sends

    def on_data(self, data: Body, *, ended: bool) -> None:
        """See `http2.Call`."""
        if not self.is_open:
            return
        size = len(data)
        if (
            ended
            and self._reader is None
            and type(data) is bytes
            and size >= PREFIX_BYTES
            and not data[0]
            and int.from_bytes(data[1:5], "big") == size - PREFIX_BYTES <= self._max_bytes
            and not self._method.streams_in
        ):
            self._handle(data[5:])  # the usual case: one message in one piece
            return
        if self._reader is None:
            self._reader = MessageReader(self._max_bytes, self._route.encoding)
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except EfserveError as exc:
            self.fail(exc)
            return
        self._withheld_bytes += size
        if ended:
            self.on_end()
        else:
            self._connection.holding.put(self, self._reader.held_bytes + len(self._message))
            self._open_window()

    def _take(self, message: Body) -> None:
        if self._method.streams_in:
            if self.is_open:
                self._handle(message)
        elif self._has_message:
            raise CallFailed(Status.INTERNAL, f"{self._method.name} takes one message, the client sent several")
        else:
            self._message, self._has_message = message, True

    def on_end(self) -> None:
        """See `http2.Call`."""
        if not self.is_open:
            return
        self._is_whole = True
        if self._reader is not None:
            self._connection.holding.put(self, 0)
        if self._reader is not None and self._reader.partial:
            self.fail(CallFailed(Status.INTERNAL, "the request ends in the middle of a message"))
        elif self._method.streams_in:
            self._end_if_done()
        elif self._has_message:
            message, self._message = self._message, b""
            self._handle(message)
        else:
            self.fail(CallFailed(Status.INTERNAL, f"{self._method.name} takes one message, the client sent none"))

    def _handle(self, message: Body) -> None:
        try:
            self._method.on_message(self, message)
        except EfserveError as exc:
            self.fail(exc)
        except Exception:  # the border of one request
            logger.exception("%s failed", self._method.name)
            self.fail(INTERNAL)

    def _open_window(self) -> None:
        """Let the client send on, unless it has enough in flight."""
        in_flight = len(self.requests) if self.requests is not None else 0
        if (
            in_flight < MAX_IN_FLIGHT
            and self._stream.queued_bytes < MAX_QUEUED_BYTES
            and self._connection.holding.may_go_on(self)
        ):
            size, self._withheld_bytes = self._withheld_bytes, 0
            self._connection.codec.give_back(self._stream, size)

    def on_sent(self) -> None:
        """See `http2.Call`."""
        if self._withheld_bytes:
            self._open_window()

    # What the client gets

    def answer(self, parts: list[Buffer]) -> None:
        """The one answer of a call: a message in parts, with its prefix. Dropped when the call is over."""
        if not self.is_open:
            return
        self._close()
        head, message = RESPONSE_HEAD, parts
        if self._route.answer_encoding:
            head, message = COMPRESSED_HEADS[self._route.answer_encoding], [self._compressed(parts)]
        self._connection.send_answer(self._stream, head, message, OK_TRAILERS)
        self._connection.flush()

    def send(self, parts: list[Buffer]) -> None:
        """One of many answers: a message in parts, with its prefix. Dropped when the call is over."""
        if not self.is_open:
            return
        codec, encoding = self._connection.codec, self._route.answer_encoding
        if not self._has_started:
            self._has_started = True
            codec.send_headers(self._stream, COMPRESSED_HEADS[encoding] if encoding else RESPONSE_HEAD)
        if encoding:
            parts = [self._compressed(parts)]
        elif sum(map(len, parts)) <= JOINED_BYTES:
            parts = [b"".join(parts)]
        codec.send_data(self._stream, parts)
        if self._withheld_bytes:
            self._open_window()
        self._end_if_done()
        self._connection.flush()

    def _compressed(self, parts: list[Buffer]) -> bytes:
        return compressed([memoryview(parts[0])[PREFIX_BYTES:], *parts[1:]], self._route.answer_encoding)

    def _end_if_done(self) -> None:
        """A streaming call ends when the client has sent all and has all answers; earlier when the server stops."""
        if self.is_open and not self.requests and self.on_close is None:
            if self._is_whole:
                self._end(Status.OK, "")
            elif self.draining:
                self._end(Status.UNAVAILABLE, "the server is shutting down")

    def fail(self, error: EfserveError) -> None:
        """End the call with an error; what is under way for it is cancelled."""
        self._end(status_of(error), str(error))

    def _end(self, status: Status, text: str) -> None:
        if not self.is_open:
            return
        self._close()
        if status is Status.OK and not self._has_started:
            self._connection.codec.send_headers(self._stream, RESPONSE_HEAD)
            self._has_started = True
        block = trailers(status, text, alone=not self._has_started)
        self._connection.codec.send_headers(self._stream, block, end=True)
        self._connection.flush()

    # Life

    def on_gone(self) -> None:
        """See `http2.Call`."""
        if self.is_open:
            self._close()

    def on_drain(self) -> None:
        """See `http2.Call`."""
        self.draining = True
        if self.on_close is not None:
            self._end(Status.UNAVAILABLE, "the server is shutting down")
        elif self._method.streams_in:
            self._end_if_done()

    def _expire(self) -> None:
        self._timer = None
        self._end(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _close(self) -> None:
        """The call is over: nothing that is under way for it is needed."""
        self.is_open = False
        self._stream.call = None  # nothing is told of it any more, and no cycle is left to be collected
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None:
            self._connection.holding.put(self, 0)
        if self.request is not None:
            self.request.cancel()  # of no effect on one that has been answered
            self.request = None
        if self.requests:
            for request in self.requests.values():
                request.cancel()
            self.requests.clear()
        if self.on_close is not None:
            self.on_close()
