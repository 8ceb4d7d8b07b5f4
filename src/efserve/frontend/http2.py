"""One HTTP/2 connection: carries bytes between a transport and the codec, events to calls; flow control, timeouts.

Knows no methods: `Hub.begin` makes the call of each new stream.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from efserve.codec.http2.connection import Connection
from efserve.codec.http2.events import DataReceived, Event, HeadReceived, StreamEnded, TrailersReceived, WentAway
from efserve.codec.http2.limits import DEFAULT_LIMITS
from efserve.codec.http2.limits import Limits as PeerLimits
from efserve.frontend.holding import Holding
from efserve.frontend.port import Group, is_local
from efserve.inference import Body

logger = logging.getLogger(__name__)

RECEIVE_BYTES = 256 * 1024
SMALL_BYTES = 16 * 1024  # what arrives in one piece up to here is copied, which is cheaper than views of it
JOINED_BYTES = 64 * 1024  # what is sent at once up to here is joined into one buffer


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a connection may stay in one situation, in seconds."""

    head_s: float = 10.0  # for the client to introduce itself, and for each frame but data
    stalled_s: float = 30.0  # without a byte more of an answer taken
    silent_s: float = 60.0  # without a byte from the client, before it is asked whether it is there
    linger_s: float = 2.0  # for the client to close after the last word


class Call(Protocol):
    """Who handles a stream."""

    def on_data(self, data: Body, *, ended: bool) -> None:
        """A part of the request, valid for this call only."""

    def on_end(self) -> None:
        """The request is whole."""

    def on_gone(self) -> None:
        """The client has cancelled, or has gone."""

    def on_sent(self) -> None:
        """What waited for the client's window has been sent."""

    def on_drain(self) -> None:
        """The server stops: end soon."""


class Hub:
    """What the connections of one port share."""

    def __init__(
        self,
        begin: "Callable[[Http2Connection, HeadReceived], Call | None]",
        limits: Limits,
        peer_limits: PeerLimits = DEFAULT_LIMITS,
        *,
        most_held_bytes: int = 128 * 2**20,
    ) -> None:
        self.most_held_bytes = most_held_bytes  # of unfinished messages of one connection
        self.begin = begin
        self.limits = limits
        self.peer_limits = peer_limits
        self.group = Group()
        self.receive_view = memoryview(bytearray(RECEIVE_BYTES))  # its content is taken before the next read


class Http2Connection(asyncio.BufferedProtocol):
    """One client connection. While `_blocked`, the client does not take what we send, and nothing is read."""

    __slots__ = (
        "_blocked",
        "_codec",
        "_finishing",
        "_hub",
        "_received_bytes",
        "_receiving",
        "_stamps",
        "_transport",
        "holding",
        "send_answer",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._codec = Connection(limits=hub.peer_limits)
        self.send_answer = self._codec.send_answer
        self.holding = Holding(hub.most_held_bytes)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # set by connection_made
        self._receiving = self._blocked = self._finishing = False
        self._received_bytes = 0
        self._stamps: dict[str, tuple[int, float]] = {}

    def __repr__(self) -> str:
        return f"<Http2Connection {self._codec!r}{', blocked' if self._blocked else ''}>"

    @property
    def codec(self) -> Connection:
        """Where calls send; `flush` carries it to the client."""
        return self._codec

    @property
    def is_local(self) -> bool:
        """Whether the client is on this machine."""
        return is_local(self._transport)

    @property
    def pending(self) -> int:
        """Streams that have begun and not ended."""
        return len(self._codec.streams)

    # Events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._hub.group.join(self)
        self.flush()
        if self._hub.group.draining:
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        streams = list(self._codec.streams.values())
        self._codec.close()
        for stream in streams:
            if stream.call is not None:
                stream.call.on_gone()
        self._hub.group.leave(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._hub.receive_view

    def buffer_updated(self, nbytes: int) -> None:
        self._received_bytes += nbytes
        data: Body = self._hub.receive_view[:nbytes]
        self._receiving = True
        for event in self._codec.receive(bytes(data) if nbytes <= SMALL_BYTES else data):
            self._handle(event)
        self._receiving = False
        self.flush()

    def pause_writing(self) -> None:
        self._blocked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # Streams

    def _handle(self, event: Event) -> None:
        if isinstance(event, HeadReceived):
            event.stream.call = call = self._hub.begin(self, event)
            if call is not None and event.ended:
                call.on_end()
        elif isinstance(event, DataReceived):
            if event.stream.call is not None:
                event.stream.call.on_data(event.data, ended=event.ended)
        elif not isinstance(event, WentAway) and event.stream.call is not None:
            if isinstance(event, TrailersReceived):
                event.stream.call.on_end()
            elif isinstance(event, StreamEnded):
                event.stream.call.on_gone()
            else:
                event.stream.call.on_sent()

    def flush(self) -> None:
        """Send what the codec has to send; while bytes are received, once for all of them."""
        if self._receiving:
            return
        buffers = self._codec.take()
        if buffers and not self._transport.is_closing():
            if sum(map(len, buffers)) <= JOINED_BYTES:
                self._transport.write(b"".join(buffers))
            else:
                self._transport.writelines(buffers)
        if self._codec.closed or (self._hub.group.draining and not self._codec.streams):
            self._finish()

    # Life

    def _finish(self) -> None:
        """Nothing more is sent. What the client still sends is dropped; closing at once could cost it our last word."""
        if not (self._finishing or self._transport.is_closing()):
            self._finishing = True
            if not self._codec.closed:
                self._codec.close()
                self._transport.writelines(self._codec.take())
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # over TLS
                self._transport.close()

    def drain(self) -> None:
        """Take no more streams, and close when those that have begun are answered."""
        self._codec.go_away()
        for stream in list(self._codec.streams.values()):
            if stream.call is not None:
                stream.call.on_drain()
        self.flush()

    def abort(self) -> None:
        """Close at once; unsent answers are lost."""
        self._transport.abort()

    def sweep(self, now_s: float) -> None:
        """Close the connection when something in it has not moved for longer than it may."""
        self._codec.calm()
        limits = self._hub.limits
        unsent_bytes = self._transport.get_write_buffer_size() + self._codec.blocked_bytes
        received = self._received_bytes + 1
        late = (
            self._stands("closing", 1 if self._finishing else 0, now_s) > limits.linger_s
            or self._stands("unsent", unsent_bytes, now_s) > limits.stalled_s
            or self._stands("partial", received if self._codec.partial else 0, now_s) > limits.head_s
        )
        silent_s = self._stands("silent", received, now_s)
        if late or silent_s > limits.silent_s + limits.head_s:
            self.abort()
        elif silent_s > limits.silent_s:
            self._codec.ping()
            self.flush()

    def _stands(self, what: str, value: int, now_s: float) -> float:
        """For how many seconds a value has stood still; 0 stands for nothing that could move."""
        before, since_s = self._stamps.get(what, (0, now_s))
        if value != before or not value:
            self._stamps[what] = (value, now_s)
            return 0.0
        return now_s - since_s
