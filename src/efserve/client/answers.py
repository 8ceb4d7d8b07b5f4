"""Reading HTTP answers without I/O: a cache of known heads for speed, and a full parser for everything else.

A server repeats the head of its answer byte for byte, so that looking the bytes up replaces parsing them.
"""

from typing import NamedTuple

import httptools

_NO_BODY = (204, 304)


class BadAnswer(Exception):
    """The bytes are no HTTP answer; the text says why."""


class AnswerHead(NamedTuple):
    """What the load loop reads from the head of an answer."""

    status: int
    body_bytes: int
    payload_bytes: int  # after the JSON head of the binary tensor extension; -1: no such head
    keep_alive: bool


class AnswerParser:
    """Parses one answer of any framing: content length, chunked, or ended by the close of the connection."""

    def __init__(self, keep_bytes: int) -> None:
        self.status = 0
        self.body_bytes = 0
        self.complete = False
        self.keep_alive = False  # the connection may carry another request after this answer
        self._keep_bytes = keep_bytes
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._until_close = False
        self._surplus = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bool:
        """Take bytes; True when the answer is whole. Raises BadAnswer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise BadAnswer(f"not an HTTP answer: {exc}") from exc
        if self._surplus:
            raise BadAnswer("bytes follow the end of the answer")
        return self.complete

    def end(self) -> bool:
        """The connection has ended; True when that makes the answer whole."""
        self.complete = self.complete or self._until_close
        return self.complete

    @property
    def body(self) -> bytes:
        """The body, or as much of its begin as was to be kept."""
        return b"".join(self._kept)

    @property
    def content_type(self) -> str:
        """Media type of the body, without parameters; empty when the answer does not say."""
        return self._headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1").lower()

    @property
    def json_bytes(self) -> int:
        """Length of the JSON head in a body with binary tensors; -1 when the whole body is JSON. Raises BadAnswer."""
        value = self._headers.get(b"inference-header-content-length", b"-1")
        try:
            return int(value)
        except ValueError as exc:
            raise BadAnswer(f"Inference-Header-Content-Length is {value!r}, not a number") from exc

    def head(self) -> AnswerHead:
        """The facts of a whole answer. Raises BadAnswer when its JSON head is said to be longer than its body."""
        return AnswerHead(self.status, self.body_bytes, _payload(self.json_bytes, self.body_bytes), self.keep_alive)

    def cacheable(self) -> AnswerHead | None:
        """The head of this answer when the same bytes again will mean the same body: a success with a length."""
        length = self._headers.get(b"content-length", b"")
        if self.status != 200 or not length.isdigit() or b"transfer-encoding" in self._headers:
            return None
        return AnswerHead(200, int(length), _payload(self.json_bytes, int(length)), self.keep_alive)

    # Called by httptools.

    def on_message_begin(self) -> None:
        self._surplus = self.complete
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        self._until_close = not framed and self.status >= 200 and self.status not in _NO_BODY
        self.keep_alive = bool(self._parser.should_keep_alive())  # the parser forgets it at the end of the message

    def on_body(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self._kept_bytes < self._keep_bytes:
            self._kept.append(data[: self._keep_bytes - self._kept_bytes])
            self._kept_bytes += len(self._kept[-1])

    def on_message_complete(self) -> None:
        self.complete = self.status >= 200  # 100 Continue and its like come before the answer


def _payload(json_bytes: int, body_bytes: int) -> int:
    if json_bytes < 0:
        return -1
    if json_bytes > body_bytes:
        raise BadAnswer(f"Inference-Header-Content-Length is {json_bytes}, the body has {body_bytes} bytes")
    return body_bytes - json_bytes


class HeadCache:
    """Heads of answers by their exact bytes, a bounded number: a server that dates its answers fills it for ever."""

    def __init__(self, limit: int = 256) -> None:
        self.known: dict[bytes, AnswerHead] = {}
        self._limit = limit

    def learn(self, data: bytes, parser: AnswerParser) -> None:
        """Remember the head of an answer that began with `data` and went through `parser`."""
        cut = data.find(b"\r\n\r\n") + 4
        head = parser.cacheable()
        if cut < 4 or head is None or data[9:12] != b"200":  # in pieces, or a 100 Continue came first
            return
        if len(self.known) >= self._limit:
            self.known.clear()
        self.known[data[:cut]] = head
