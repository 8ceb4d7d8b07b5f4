"""One HTTP/1.1 connection: when to read, the order of answers, flow control, timeouts.

Knows no routes: each parsed head brings its handler. Made for many small requests: one that arrives whole, with a
head seen before, costs a dictionary lookup and a call. A body that arrives in parts is received in place.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import cast

from efserve.errors import EfserveError, InvalidRequest
from efserve.frontend.heads import CLOSE_LINE, UNREADABLE, Head, Heads
from efserve.frontend.port import Group, is_local
from efserve.frontend.reader import Phase, RequestReader
from efserve.frontend.responses import INTERNAL_ERROR, Answer, encode, error_answer, error_response, with_connection
from efserve.inference import Body, InferRequest

logger = logging.getLogger(__name__)

RECEIVE_BYTES = 64 * 1024
SMALL_BYTES = 16 * 1024  # what arrives in one piece up to here takes the short way


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a connection may stay in one situation, in seconds, and how many requests it may have open."""

    keep_alive_s: float = 75.0
    head_s: float = 10.0  # for the whole head
    stalled_s: float = 30.0  # without a byte more of a body received, or of an answer taken
    linger_s: float = 2.0  # for the client to close after its last answer
    pipelined: int = 8


class Exchange:
    """One request on a connection, and its answer once there is one."""

    __slots__ = ("answer", "begun_ns", "connection", "head", "request", "task")

    def __init__(self, connection: "Connection", head: Head, begun_ns: int = 0) -> None:
        self.connection = connection
        self.head = head
        self.begun_ns = begun_ns  # when its first bytes arrived; 0: with its last
        self.answer: Answer | None = None  # waits for earlier requests to be answered
        self.request: InferRequest | None = None  # what is to be cancelled when the client goes
        self.task: asyncio.Task[None] | None = None  # what works on the answer, where that takes time

    def respond(self, answer: Answer) -> None:
        """Answer the request; to be called exactly once."""
        self.connection.answer(self, answer)

    def cancel(self) -> None:
        """The client has gone."""
        request, self.request = self.request, None
        if request is not None:
            request.cancel()


class Hub:
    """What the connections of one server share."""

    def __init__(self, heads: Heads, max_body_bytes: int, limits: Limits) -> None:
        self.heads = heads
        self.max_body_bytes = max_body_bytes
        self.limits = limits
        self.group = Group()
        self.receive_view = memoryview(bytearray(RECEIVE_BYTES))  # its content is taken before the next read


class Connection(asyncio.BufferedProtocol):
    """One client connection.

    `_pending` holds the requests that are not answered yet, in the order of their arrival; only the first one's answer
    may be written. While `_held` nothing is read, and what was received waits in `_leftover`. `_fresh` is true exactly
    when bytes are read and the next one begins a new head. `_special` is true when an answer needs more than a write.
    """

    __slots__ = (
        "_begun_ns",
        "_blocked",
        "_cached_heads",
        "_fresh",
        "_held",
        "_hub",
        "_leftover",
        "_most_pending",
        "_owes_continue",
        "_pending",
        "_reader",
        "_receive_view",
        "_requests",
        "_special",
        "_stamp",
        "_stamp_s",
        "_transport",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._cached_heads = hub.heads.cached
        self._receive_view = hub.receive_view
        self._most_pending = hub.limits.pipelined
        self._reader = RequestReader(hub.heads, hub.max_body_bytes)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # set by connection_made
        self._pending: list[Exchange] = []
        self._leftover = bytearray()
        self._fresh = True
        self._special = self._held = self._blocked = self._owes_continue = False
        self._requests = 0
        self._begun_ns = 0
        self._stamp: tuple[str, int] = ("", 0)
        self._stamp_s = 0.0

    def __repr__(self) -> str:
        held = ", held" if self._held else ""
        return f"<Connection {self._reader.phase.value}, {len(self._pending)} pending{held}>"

    @property
    def pending(self) -> int:
        """Requests received and not answered yet."""
        return len(self._pending)

    @property
    def is_local(self) -> bool:
        """Whether the client is on this machine: it came over loopback or a Unix socket."""
        return is_local(self._transport)

    # Events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._special = self._hub.group.draining
        self._hub.group.join(self)

    def connection_lost(self, exc: Exception | None) -> None:
        gone = self._pending.copy()
        self._pending.clear()  # first: what is cancelled is answered at once, to nobody
        for exchange in gone:
            exchange.cancel()
        self._close_input()
        self._hub.group.leave(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._fresh or self._reader.phase is not Phase.BODY:
            return self._receive_view
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._fresh and nbytes <= SMALL_BYTES and not self._pending:
            data = bytes(self._receive_view[:nbytes])
            end = data.find(b"\r\n\r\n") + 4
            head = self._cached_heads.get(data[:end])
            if head is not None and end + head.plain_length == nbytes:
                self._dispatch(head, data[end:])  # small enough for copies to be cheaper than views
            else:
                self._feed(memoryview(data))
        elif self._reader.phase is Phase.BODY:
            if self._reader.filled(nbytes):
                self._fresh = not self._held
                self._dispatch(*self._reader.take())
        else:
            self._feed(self._receive_view[:nbytes])

    def pause_writing(self) -> None:
        self._blocked = True
        self._hold()

    def resume_writing(self) -> None:
        self._blocked = False
        self._release()

    # Requests

    def _feed(self, data: memoryview) -> None:
        reader = self._reader
        while len(data) and not self._held:
            try:
                data = reader.feed(data)
            except InvalidRequest as exc:
                self._refuse(error_answer(exc))
                return
            if reader.phase is Phase.DONE:
                self._dispatch(*reader.take())
            elif reader.expects_continue:
                self._owes_continue = self._special = True
                self._send_continue()
        self._leftover += data
        self._fresh = reader.fresh and not self._held
        if not reader.fresh and not self._begun_ns:
            self._begun_ns = time.monotonic_ns()

    def _send_continue(self) -> None:
        """Tell the client to send the body, once it has the answers to its earlier requests."""
        if self._owes_continue and not self._pending:
            self._owes_continue = False
            if self._reader.expects_continue:
                self._reader.expects_continue = False
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _dispatch(self, head: Head, body: Body) -> None:
        exchange = Exchange(self, head, self._begun_ns)
        self._begun_ns = 0
        self._pending.append(exchange)
        self._requests += 1
        if head.connection_line is CLOSE_LINE:
            self._close_input()
        elif len(self._pending) >= self._most_pending:
            self._hold()
        try:
            head.handler(exchange, body)
        except EfserveError as exc:
            exchange.respond(error_answer(exc))
        except Exception:
            logger.exception("request failed: %s", head.target.decode("latin-1"))
            exchange.respond(INTERNAL_ERROR)

    def _refuse(self, answer: bytes) -> None:
        """Answer what cannot be read, and read no further."""
        exchange = Exchange(self, UNREADABLE)
        self._pending.append(exchange)
        self._close_input()
        exchange.respond(answer)

    # Answers

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write the answer as soon as every earlier one is written; drop it when the client has gone."""
        exchange.request = None
        pending = self._pending
        if not pending:
            return
        if pending[0] is not exchange:
            exchange.answer = answer
            return
        del pending[0]
        if pending or self._special or exchange.head.connection_line:
            self._write(exchange.head, answer)
            while pending and (ready := pending[0].answer) is not None:
                self._write(pending.pop(0).head, ready)
            self._after_answer()
        elif isinstance(answer, bytes):
            self._transport.write(answer)
        else:
            self._transport.writelines(answer)

    def _write(self, head: Head, answer: Answer) -> None:
        line = head.connection_line
        if self._hub.group.draining and not self._pending and self._reader.phase is Phase.HEAD:
            line = CLOSE_LINE
        if line:
            answer = with_connection(answer, line)
        if isinstance(answer, bytes):
            self._transport.write(answer)
        else:
            self._transport.writelines(answer)
        if line is CLOSE_LINE:
            self._close_input()
            # Not a plain close: bytes that the client still sends would turn it into a reset, which destroys the
            # answer on its way.
            if self._transport.is_closing():
                return
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # TLS, which says in its own words that no more will come
                self._transport.close()

    def _after_answer(self) -> None:
        self._send_continue()
        if self._held and not self._blocked:
            asyncio.get_running_loop().call_soon(self._release)
        self._special = self._held or self._owes_continue or self._hub.group.draining

    # Life

    def _close_input(self) -> None:
        """Nothing that comes from now on is a request."""
        self._reader.close()
        self._fresh = self._owes_continue = False
        self._leftover = bytearray()

    def _hold(self) -> None:
        if not self._held:
            self._held = self._special = True
            self._fresh = False
            self._transport.pause_reading()

    def _release(self) -> None:
        if not self._held or self._blocked or len(self._pending) > self._most_pending // 2:
            return
        self._held = False
        leftover, self._leftover = self._leftover, bytearray()
        self._feed(memoryview(leftover))
        if not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    def drain(self) -> None:
        """Close now unless a request has been received or its body is on the way; then close after its answer."""
        self._special = True
        if not self._pending and self._reader.phase is Phase.HEAD:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; unsent answers are lost."""
        self._transport.abort()

    def sweep(self, now_s: float) -> None:
        """Close the connection when nothing has moved in it for longer than its situation allows."""
        stamp, limit_s = self._progress()
        if stamp != self._stamp:
            self._stamp, self._stamp_s = stamp, now_s
        elif now_s - self._stamp_s > limit_s:
            self._expire(stamp[0], limit_s)

    def _progress(self) -> tuple[tuple[str, int], float]:
        """What must change within how many seconds."""
        limits, phase = self._hub.limits, self._reader.phase
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes:
            return ("unsent", unsent_bytes), limits.stalled_s
        if self._pending:
            return ("waiting", 0), float("inf")
        if phase is Phase.HEAD:
            idle = self._reader.fresh
            return ("idle" if idle else "head", self._requests), limits.keep_alive_s if idle else limits.head_s
        if phase is Phase.CLOSED:
            return ("closing", 0), limits.linger_s
        return ("body", self._reader.received_bytes), limits.stalled_s

    def _expire(self, what: str, limit_s: float) -> None:
        if what in ("head", "body"):
            text = f"request {what} did not arrive in time; the limit is {limit_s:g} s"
            self._refuse(encode(error_response(408, text)))
        elif what == "idle":
            self._transport.close()
        else:
            self._transport.abort()
