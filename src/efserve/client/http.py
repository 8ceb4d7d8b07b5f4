"""HTTP/1.1 for load: a connection that sends prepared requests and calls back, with as little work as can be.

An answer whose head is known by its bytes costs one dictionary look-up; all others go through `AnswerParser`.
"""

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import cast

from efserve.client.answers import AnswerHead, AnswerParser, BadAnswer, HeadCache
from efserve.client.connection import CLOSED, CONNECT, GARBLED, RESET, Listener
from efserve.client.endpoint import Endpoint, reason_of

ERROR_TEXT_BYTES = 4096


def prepare(
    endpoint: Endpoint, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP/1.1 request as bytes; `path` begins with a slash and follows the endpoint's prefix."""
    fields = {"Host": endpoint.authority, "User-Agent": "efserve", **(headers or {})}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {endpoint.prefix}{path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


class HttpConnection:
    """A `Connection` over HTTP/1.1. Connections to one server share one `HeadCache`."""

    __slots__ = (
        "_endpoint",
        "_heads",
        "_listener",
        "_opening",
        "_text",
        "_unsent",
        "_wire",
        "_write",
        "busy",
        "due_ns",
        "model",
        "start_ns",
    )
    protocol = "http"

    def __init__(self, endpoint: Endpoint, listener: Listener, heads: HeadCache) -> None:
        self.start_ns = self.due_ns = self.model = 0
        self.busy = False  # a request is under way
        self._endpoint = endpoint
        self._listener = listener
        self._heads = heads
        self._wire: _Wire | None = None
        self._write: Callable[[bytes], None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unsent = b""
        self._text = ""

    def __repr__(self) -> str:
        state = "open" if self._write else "opening" if self._opening else "closed"
        return f"<HttpConnection {self._endpoint.url} {state}{' busy' if self.busy else ''}>"

    def send(self, request: bytes) -> None:
        """Send a request made by `prepare`."""
        self.busy = True
        if self._write is not None:
            self._write(request)
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
        """Body of the last answer that was not 200, cut after 4 KiB."""
        return self._text

    async def _open(self) -> None:
        wire = self._wire = _Wire(self, self._listener, self._heads)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: wire, self._endpoint.host, self._endpoint.port, ssl=self._endpoint.tls
            )
        except OSError as exc:
            self._opening = None
            self.abort(CONNECT, reason_of(exc))

    def _opened(self, write: Callable[[bytes], None]) -> None:
        self._opening = None
        self._write = write
        write(self._unsent)
        self._unsent = b""

    def _answered(self, parser: AnswerParser, head: AnswerHead) -> None:
        """An answer that went through the parser is whole."""
        end_ns = monotonic_ns()
        if not head.keep_alive:
            self._drop()
        if head.status != 200:
            self._text = parser.body.decode("utf-8", "replace")
        self.busy = False
        self._listener.on_answer(self, head.status, head.payload_bytes, end_ns)

    def _drop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        wire, self._wire, self._write, self._opening = self._wire, None, None, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()


class _Wire(asyncio.Protocol):
    """One TCP connection of an `HttpConnection`, which outlives it."""

    __slots__ = ("_begin", "_head", "_heads", "_known", "_missing", "_on_answer", "_parser", "owner", "transport")

    def __init__(self, owner: HttpConnection, listener: Listener, heads: HeadCache) -> None:
        self.owner = owner
        self._on_answer = listener.on_answer
        self._heads = heads
        self._known = heads.known
        self._head: AnswerHead | None = None  # of an answer whose body is not whole yet
        self._missing = 0  # bytes of that body still to come
        self._parser: AnswerParser | None = None
        self._begin = b""
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = cast("asyncio.WriteTransport", transport)
        if self.owner._wire is self:
            self.transport = tcp
            self.owner._opened(tcp.write)
        else:  # given up while it was opening
            tcp.abort()

    def data_received(self, data: bytes) -> None:
        end_ns = monotonic_ns()
        owner = self.owner
        head = self._head
        if head is not None:
            missing = self._missing - len(data)
        else:
            cut = data.find(b"\r\n\r\n") + 4
            head = self._known.get(data[:cut])
            if head is None or self._parser is not None or not owner.busy:
                self._parse(data)
                return
            missing = head.body_bytes + cut - len(data)
        if missing > 0:
            self._head, self._missing = head, missing
            return
        self._head = None
        status, _, payload_bytes, keep_alive = head
        if missing:
            self._fail(GARBLED, f"{-missing} bytes follow the end of the answer")
            return
        if not keep_alive:
            owner._drop()
        owner.busy = False
        self._on_answer(owner, status, payload_bytes, end_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.owner._wire is not self:
            return
        if exc is not None:
            self.owner.abort(RESET, f"the connection broke: {exc}")
        elif self._parser is None or not self._parser.end():
            self.owner.abort(CLOSED, "the server closed the connection " + self._progress())
        else:
            self._parsed(self._parser)

    def _parse(self, data: bytes) -> None:
        """The slow way: an unknown head, one in pieces, or a body without a length."""
        if not self.owner.busy:
            self._fail(GARBLED, "bytes arrived without a request")
            return
        parser = self._parser
        if parser is None:
            parser = self._parser = AnswerParser(ERROR_TEXT_BYTES)
            self._begin = data
        try:
            whole = parser.feed(data)
        except BadAnswer as exc:
            self._fail(GARBLED, str(exc))
            return
        if whole:
            self._parsed(parser)

    def _parsed(self, parser: AnswerParser) -> None:
        self._parser = None
        try:
            head = parser.head()
            self._heads.learn(self._begin, parser)
        except BadAnswer as exc:
            self._fail(GARBLED, str(exc))
            return
        self.owner._answered(parser, head)

    def _fail(self, kind: str, text: str) -> None:
        if self.owner._wire is self:
            self.owner.abort(kind, text)

    def _progress(self) -> str:
        if self._head is not None:
            return f"{self._missing} bytes before the end of the answer"
        return "in the middle of its answer" if self._parser is not None else "without an answer"
