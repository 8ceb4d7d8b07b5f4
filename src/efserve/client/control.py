"""Control calls over HTTP: one request, one answer, a deadline. For everything but load, where `http.py` is."""

import asyncio
from dataclasses import dataclass
from typing import cast

import msgspec

from efserve.client.answers import AnswerParser, BadAnswer
from efserve.client.endpoint import SYSTEM_TRUST, Endpoint, Trust, reason_of
from efserve.client.http import prepare
from efserve.errors import RemoteError

MAX_ANSWER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer. `json_bytes` is the length of the JSON head of a body with binary tensors, else -1."""

    status: int
    content_type: str
    json_bytes: int
    body: bytes

    def json(self) -> object:
        """The body as JSON; raises RemoteError when it is none."""
        try:
            return cast("object", msgspec.json.decode(self.body))
        except msgspec.DecodeError as exc:
            raise RemoteError(f"the server answered {self.status} with a body that is not JSON: {exc}") from exc

    def error_text(self) -> str:
        """What the server says went wrong: the text of `{"error": ...}`, or the begin of whatever it sent."""
        try:
            return msgspec.json.decode(self.body, type=_Error).error
        except msgspec.DecodeError:
            return self.body[:200].decode("utf-8", "replace").strip() or f"HTTP status {self.status}"


class _Error(msgspec.Struct):
    error: str


class HttpClient:
    """Calls one server, a new connection per call, so that no idle connection can go stale."""

    def __init__(self, url: str, deadline_s: float = 30.0, trust: Trust = SYSTEM_TRUST) -> None:
        """Raises UsageError for a URL that is not HTTP."""
        self.endpoint = Endpoint(url, trust)
        self.deadline_s = deadline_s

    def __repr__(self) -> str:
        return f"<HttpClient {self.endpoint.url}>"

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> HttpAnswer:
        """Send one request and read its answer, of whatever status. Raises RemoteError when there is none."""
        request = prepare(self.endpoint, method, path, body, {"Connection": "close", **(headers or {})})
        loop = asyncio.get_running_loop()
        exchange = _Exchange(loop.create_future())
        try:
            async with asyncio.timeout(self.deadline_s):
                transport, _ = await loop.create_connection(
                    lambda: exchange, self.endpoint.host, self.endpoint.port, ssl=self.endpoint.tls
                )
                try:
                    transport.write(request)
                    return await exchange.answer
                finally:
                    transport.abort()
        except TimeoutError as exc:
            raise RemoteError(
                f"{self.endpoint.url}: no answer to {method} {path} within {self.deadline_s:g} s"
            ) from exc
        except OSError as exc:
            raise RemoteError(f"cannot reach a server at {self.endpoint.url}: {reason_of(exc)}") from exc
        except BadAnswer as exc:
            raise RemoteError(f"{self.endpoint.url}: {method} {path}: {exc}") from exc

    async def get(self, path: str) -> HttpAnswer:
        """GET, any status."""
        return await self.call("GET", path)

    async def post_json(self, path: str, value: object) -> HttpAnswer:
        """POST a value as JSON, any status."""
        return await self.call("POST", path, msgspec.json.encode(value), {"Content-Type": "application/json"})


class _Exchange(asyncio.Protocol):
    """One request's connection; its answer, or the reason why there is none, goes into a future."""

    def __init__(self, answer: "asyncio.Future[HttpAnswer]") -> None:
        self.answer = answer
        self._parser = AnswerParser(MAX_ANSWER_BYTES)

    def data_received(self, data: bytes) -> None:
        try:
            if self._parser.feed(data):
                self._done()
        except BadAnswer as exc:
            self._fail(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parser.complete or self.answer.done():
            return
        if exc is None and self._parser.end():
            try:
                self._done()
            except BadAnswer as bad:
                self._fail(bad)
        else:
            self._fail(BadAnswer(str(exc or "the server closed the connection before its answer was whole")))

    def _done(self) -> None:
        parser = self._parser
        parser.head()  # raises when the lengths contradict each other
        if not self.answer.done():
            self.answer.set_result(HttpAnswer(parser.status, parser.content_type, parser.json_bytes, parser.body))

    def _fail(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)
