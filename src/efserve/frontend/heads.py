"""HTTP request heads: from bytes to a `Head`, each distinct head parsed only once.

Syntax is judged by llhttp (through httptools), and what its leniency leaves open to request smuggling is refused here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools

from efserve.errors import InvalidRequest
from efserve.inference import Body

MAX_HEAD_BYTES = 64 * 1024
MAX_CACHED_HEAD_BYTES = 2048
MAX_CACHED_HEADS = 512

KEEP_ALIVE_LINE = b"Connection: keep-alive\r\n"
CLOSE_LINE = b"Connection: close\r\n"


@dataclass(slots=True, eq=False)
class Head:
    """One request head; shared by all requests that begin with the same bytes, so nobody changes it."""

    method: bytes
    target: bytes
    content_length: int = 0
    chunked: bool = False
    connection_line: bytes = b""  # what the answer must say; empty where HTTP's default is right
    expect: bytes = b""
    header_length: int | None = None  # Inference-Header-Content-Length
    content_encoding: bytes = b""
    accept_encoding: bytes = b""
    authorization: bytes = b""
    plain_length: int = -1  # content_length, where the body needs nothing but to be read; else -1
    handler: Callable[[Any, Body], None] = lambda exchange, body: None  # (Exchange, body); set by the routes


# Stands for a request whose head or body could not be read: its answer is the connection's last.
UNREADABLE = Head(b"", b"", connection_line=CLOSE_LINE)


class Heads:
    """The parsed heads of one server: a bounded cache in front of the parser."""

    def __init__(self, resolve: Callable[[Head], Callable[[Any, Body], None]], max_body_bytes: int) -> None:
        self._resolve = resolve
        self._max_body_bytes = max_body_bytes
        self.cached: dict[bytes, Head] = {}

    def get(self, text: bytes) -> Head:
        """The head whose bytes, empty line included, are `text`; InvalidRequest when it is malformed."""
        head = self.cached.get(text)
        if head is None:
            head = parse_head(text)
            head.handler = self._resolve(head)
            if not (head.chunked or head.expect) and head.content_length <= self._max_body_bytes:
                head.plain_length = head.content_length
            if len(text) <= MAX_CACHED_HEAD_BYTES:
                if len(self.cached) >= MAX_CACHED_HEADS:
                    self.cached.clear()
                self.cached[text] = head
        return head


def parse_head(text: bytes) -> Head:
    """Parse one head, empty line included; InvalidRequest when it is malformed or ambiguous."""
    if b"\r\n " in text or b"\r\n\t" in text:
        raise InvalidRequest("malformed HTTP request: a header is folded over several lines")
    if b"\0" in text or text.count(b"\n") != text.count(b"\r\n") or text.count(b"\r") != text.count(b"\r\n"):
        raise InvalidRequest("malformed HTTP request: a line does not end with CR LF")
    events = _Events()
    parser = httptools.HttpRequestParser(events)
    parser.set_dangerous_leniencies(lenient_chunked_length=True)  # such a connection is closed, see `_read_headers`
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer that we do not take; the request itself is complete
    except httptools.HttpParserError as exc:
        raise InvalidRequest(f"malformed HTTP request: {exc}") from exc
    if not events.complete:
        raise InvalidRequest("malformed HTTP request: the head is incomplete")
    head = Head(method=parser.get_method(), target=events.target)
    _read_headers(head, events.headers)
    head.content_encoding = events.all_of(b"content-encoding").strip().lower()
    head.accept_encoding = events.all_of(b"accept-encoding").lower()
    head.authorization = events.all_of(b"authorization").strip()
    head.connection_line = head.connection_line or _connection_line(
        parser.get_http_version(), events.all_of(b"connection")
    )
    if parser.get_http_version() == "1.0":
        if head.chunked:
            raise InvalidRequest("malformed HTTP request: Transfer-Encoding in HTTP/1.0")
        head.expect = b""
    return head


def _connection_line(version: str, connection: bytes) -> bytes:
    tokens = [token.strip() for token in connection.lower().split(b",")]
    if version == "1.1":
        return CLOSE_LINE if b"close" in tokens else b""
    if version == "1.0":
        return KEEP_ALIVE_LINE if b"keep-alive" in tokens and b"close" not in tokens else CLOSE_LINE
    raise InvalidRequest(f"HTTP version {version} is not supported; expected 1.1 or 1.0")


class _Events:
    """What httptools calls while it parses."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def all_of(self, name: bytes) -> bytes:
        """Every value of one header, joined as a list."""
        return b",".join([value for key, value in self.headers if key == name])


_SINGLE = (b"content-length", b"transfer-encoding", b"inference-header-content-length", b"expect")


def _read_headers(head: Head, headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _SINGLE:
            if name in seen:
                raise InvalidRequest(f"malformed HTTP request: header {name.decode()} appears twice")
            seen.add(name)
        if name == b"content-length":
            head.content_length = _length(name, value)
        elif name == b"transfer-encoding":
            head.chunked = _is_chunked(value)
        elif name == b"inference-header-content-length":
            head.header_length = _length(name, value)
        elif name == b"expect":
            head.expect = value.strip().lower()
    if head.chunked and b"content-length" in seen:
        # Chunks decide, as RFC 9112 (6.3) has it, and nothing behind them is read: a proxy may have gone by the length.
        head.content_length, head.connection_line = 0, CLOSE_LINE


def _is_chunked(value: bytes) -> bool:
    if value.strip().lower() != b"chunked":
        raise InvalidRequest(
            f"malformed HTTP request: Transfer-Encoding is {value.decode('latin-1')!r}, expected 'chunked'"
        )
    return True


def _length(name: bytes, value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"header {name.decode()} is {value.decode('latin-1')!r}, expected a number of bytes")
    return int(text)
