"""The load connection against servers that answer in every form, in every cut, and wrongly."""

import asyncio
import socket
from dataclasses import dataclass, field

import pytest
import uvloop

from byte_server import Script, Then, serving
from efserve.client.answers import AnswerParser, BadAnswer, HeadCache
from efserve.client.connection import CLOSED, CONNECT, GARBLED, RESET, TIMEOUT, Connection
from efserve.client.endpoint import Endpoint
from efserve.client.http import HttpConnection, prepare
from efserve.errors import UsageError

PLAIN = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 4\r\nContent-Length: 10\r\n\r\n{..}654321"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: 4\r\n\r\n"
    b"3\r\n{..\r\n7\r\n}654321\r\n0\r\n\r\n"
)
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 4\r\n\r\n{..}654321"
NOT_OK = b'HTTP/1.1 503 Busy\r\nContent-Length: 16\r\n\r\n{"error":"full"}'


@dataclass
class Heard:
    """A listener that writes down what it hears, and wakes who waits for it."""

    answers: list[tuple[int, int]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        assert end_ns > 0
        self.answers.append((status, payload_bytes))
        self.news.set()

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        assert end_ns > 0
        assert text
        self.failures.append((kind, text))
        self.news.set()


async def exchange(connection: HttpConnection, heard: Heard, url: str) -> None:
    """Send one request and wait for what comes of it."""
    heard.news.clear()
    connection.send(prepare(Endpoint(url), "POST", "/v2/models/m/infer", b"body"))
    async with asyncio.timeout(10):
        await heard.news.wait()


async def talk(script: Script, requests: int = 1) -> tuple[Heard, str]:
    """Send requests one after the other to a server that follows the script."""
    async with serving(script) as url:
        heard = Heard()
        connection = HttpConnection(Endpoint(url), heard, HeadCache())
        for _ in range(requests):
            await exchange(connection, heard, url)
        connection.close()
        return heard, connection.error_text()


def cuts(answer: bytes) -> list[tuple[bytes, bytes]]:
    return [(answer[:cut], answer[cut:]) for cut in range(1, len(answer))]


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, CONTINUED], ids=["plain", "chunked", "continued"])
def test_answers_are_whole_in_every_cut(answer: bytes) -> None:
    async def main() -> None:
        for pieces in cuts(answer):
            script = Script(pieces)
            heard, _ = await talk(script, requests=3)
            assert heard.answers == [(200, 6)] * 3, pieces
            assert not heard.failures
            assert script.connections == 1

    uvloop.run(main())


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, CONTINUED], ids=["plain", "chunked", "continued"])
def test_truncated_answers_are_failures_at_every_cut(answer: bytes, then: Then) -> None:
    async def main() -> None:
        for head, _ in [(b"", answer), *cuts(answer)]:
            script = Script([head] if head else [], then)
            heard, _ = await talk(script, requests=2)
            assert not heard.answers, head
            assert [kind for kind, _ in heard.failures] == [CLOSED if then == "close" else RESET] * 2, head
            assert script.connections == 2

    uvloop.run(main())


def test_the_fast_way_notices_truncation_too() -> None:
    """The second answer has a head that is known from the first."""

    async def main() -> None:
        heads = HeadCache()
        heard = Heard()
        async with serving(Script([PLAIN])) as url:
            connection = HttpConnection(Endpoint(url), heard, heads)
            await exchange(connection, heard, url)
            connection.close()
        async with serving(Script([PLAIN[:-3]], "close")) as url:
            connection = HttpConnection(Endpoint(url), heard, heads)
            await exchange(connection, heard, url)
        assert len(heads.known) == 1
        assert heard.answers == [(200, 6)]
        assert heard.failures == [(CLOSED, "the server closed the connection 3 bytes before the end of the answer")]

    asyncio.run(main())


def test_a_body_may_end_with_the_connection() -> None:
    script = Script([UNTIL_CLOSE], "close")
    heard, _ = asyncio.run(talk(script, requests=3))
    assert heard.answers == [(200, 6)] * 3
    assert script.connections == 3


@pytest.mark.parametrize("form", [PLAIN, CHUNKED], ids=["plain", "chunked"])
def test_a_server_that_closes_after_each_answer_gets_a_new_connection(form: bytes) -> None:
    script = Script([form.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)], "close")
    heard, _ = uvloop.run(talk(script, requests=3))
    assert heard.answers == [(200, 6)] * 3
    assert not heard.failures
    assert script.connections == 3


def test_an_error_answer_keeps_its_text_and_its_connection() -> None:
    script = Script([NOT_OK])
    heard, text = uvloop.run(talk(script, requests=3))
    assert heard.answers == [(503, -1)] * 3
    assert text == '{"error":"full"}'
    assert script.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        PLAIN + b"more",
        PLAIN.replace(b"Length: 4", b"Length: x"),
        PLAIN.replace(b"Length: 4", b"Length: 11"),
        CHUNKED.replace(b"3\r\n{", b"zz\r\n{"),
        PLAIN.replace(b"Length: 10", b"Length: ten"),
    ],
)
def test_garbled_answers_are_failures(answer: bytes) -> None:
    heard, _ = uvloop.run(talk(Script([answer]), requests=2))
    assert [kind for kind, _ in heard.failures] == [GARBLED] * 2
    assert not heard.answers


def test_surplus_after_a_known_head_is_garbled() -> None:
    async def main() -> None:
        heads, heard = HeadCache(), Heard()
        for answer in (PLAIN, PLAIN + b"x"):
            async with serving(Script([answer])) as url:
                connection = HttpConnection(Endpoint(url), heard, heads)
                await exchange(connection, heard, url)
                connection.close()
        assert heard.answers == [(200, 6)]
        assert heard.failures == [(GARBLED, "1 bytes follow the end of the answer")]

    uvloop.run(main())


def test_refused_connections_are_failures() -> None:
    with socket.socket() as unused:  # bound and not listening: nobody else can get the port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        async def main() -> Heard:
            heard = Heard()
            connection = HttpConnection(Endpoint(url), heard, HeadCache())
            await exchange(connection, heard, url)
            await exchange(connection, heard, url)
            return heard

        assert uvloop.run(main()).failures == [(CONNECT, "connection refused")] * 2


def test_an_aborted_request_fails_once_and_the_next_one_works() -> None:
    async def main() -> None:
        script = Script([PLAIN])
        heard = Heard()
        async with serving(script) as url:
            connection = HttpConnection(Endpoint(url), heard, HeadCache())
            for _ in range(2):  # while it opens, and while it waits
                connection.send(prepare(Endpoint(url), "GET", "/"))
                connection.abort(TIMEOUT, "too late")
                connection.abort(TIMEOUT, "not under way any more")
                await exchange(connection, heard, url)
            connection.close()
        assert heard.failures == [(TIMEOUT, "too late")] * 2
        assert heard.answers == [(200, 6)] * 2

    uvloop.run(main())


def test_the_cache_of_heads_is_bounded() -> None:
    heads = HeadCache(limit=3)
    for number in range(10):
        answer = b"HTTP/1.1 200 OK\r\nDate: %d\r\nContent-Length: 2\r\n\r\nok" % number
        parser = AnswerParser(0)
        assert parser.feed(answer)
        heads.learn(answer, parser)
        assert 1 <= len(heads.known) <= 3


def test_the_parser_keeps_no_more_than_it_is_told() -> None:
    parser = AnswerParser(3)
    assert parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef")
    assert parser.body == b"abc"
    assert parser.body_bytes == 6
    with pytest.raises(BadAnswer):
        parser.feed(b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://localhost:8000", ("localhost", 8000, "")),
        ("localhost:8000", ("localhost", 8000, "")),
        ("http://[::1]:9/base/", ("::1", 9, "/base")),
        ("http://example", ("example", 80, "")),
    ],
)
def test_urls(url: str, parts: tuple[str, int, str]) -> None:
    endpoint = Endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.prefix) == parts


@pytest.mark.parametrize(
    "url", ["http://", "http://x:y", "ftp://x", "http://x:99999", "http://u:p@x", "http://x/?q", "http://x/é", "x y"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected http"):
        Endpoint(url)
