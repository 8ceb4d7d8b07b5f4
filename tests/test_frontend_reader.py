"""From bytes to requests: every cut of the stream reads the same, and what is ambiguous or too large is refused."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.errors import InvalidRequest
from efserve.frontend.chunked import MAX_CHUNKS, ChunkedDecoder
from efserve.frontend.heads import CLOSE_LINE, MAX_CACHED_HEADS, MAX_HEAD_BYTES, Head, Heads, parse_head
from efserve.frontend.reader import Phase, RequestReader

LIMIT = 1000
CHUNKED = b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n"
STREAM = (
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    b"\r\nGET /b?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKED
    + b"POST /d HTTP/1.0\r\nContent-Length: 0\r\n\r\n"
)
REQUESTS = [("/a", b"hello"), ("/b?x=1", b""), ("/c", b"hello!"), ("/d", b"")]


def heads() -> Heads:
    return Heads(lambda head: lambda exchange, body: None, LIMIT)


def read(reader: RequestReader, data: bytes, *, in_place: bool = False) -> list[tuple[str, bytes]]:
    """Feed one piece, by copying or by the way that a transport fills a body in place."""
    found, rest = [], memoryview(data)
    while len(rest):
        if in_place and reader.phase is Phase.BODY:
            part = rest[: len(reader.room())]
            reader.room()[: len(part)] = part
            reader.filled(len(part))
            rest = rest[len(part) :]
        else:
            rest = reader.feed(rest)
        if reader.phase is Phase.DONE:
            head, body = reader.take()
            found.append((head.target.decode(), bytes(body)))
    return found


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_every_step_reads_the_same(step: int, in_place: bool) -> None:
    reader, found = RequestReader(heads(), LIMIT), []
    for at in range(0, len(STREAM), step):
        found += read(reader, STREAM[at : at + step], in_place=in_place)
    assert found == REQUESTS
    assert reader.fresh


@given(st.randoms(use_true_random=False))
def test_random_cuts_read_the_same(rng: random.Random) -> None:
    cuts = sorted(rng.randrange(len(STREAM)) for _ in range(rng.randint(0, 20)))
    reader, found = RequestReader(heads(), LIMIT), []
    for start, stop in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        found += read(reader, STREAM[start:stop])
    assert found == REQUESTS


def test_every_truncation_waits_for_more() -> None:
    for cut in range(len(STREAM)):
        found = read(RequestReader(heads(), LIMIT), STREAM[:cut])
        assert found == REQUESTS[: len(found)]


def feed_all(target: RequestReader | ChunkedDecoder, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        target.feed(memoryview(data[at : at + step]))


HOST = b"Host: h\r\n"
MALFORMED = [
    b"GET\r\n\r\n",
    b"GET /\r\n\r\n",
    b"NONSENSE / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET / HTTP/3.7\r\n" + HOST + b"\r\n",
    b"GET / HTTP/1.1\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\r\n\tfolded\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5_0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nInference-Header-Content-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_and_ambiguous_heads_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(RequestReader(heads(), LIMIT), text)


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\rX",
        b"5 5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"11111111111111111\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\n" + b"T: x\r\n" * 4000,
        b"0\r\nT\rT: x\r\n",
        b"3e9\r\n",  # 1001 bytes
        b"3e8\r\n" + bytes(1000) + b"\r\n1\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_malformed_or_too_large_chunks_are_refused(body: bytes, step: int) -> None:
    decoder = ChunkedDecoder(LIMIT)
    with pytest.raises(InvalidRequest):
        feed_all(decoder, body, step)
    assert len(decoder.body) <= LIMIT


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.integers(1, 20))
def test_chunks_of_any_size(chunks: list[bytes], step: int) -> None:
    stream = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\nREST"
    decoder, rest = ChunkedDecoder(LIMIT), b""
    for at in range(0, len(stream), step):
        rest += bytes(decoder.feed(memoryview(stream[at : at + step])))
    assert (decoder.complete, bytes(decoder.body), rest) == (True, b"".join(chunks), b"REST")


@pytest.mark.parametrize("step", [1000, 10_000_000])
@pytest.mark.parametrize("ended", [False, True])
def test_a_head_without_end_stops_at_the_limit(step: int, ended: bool) -> None:
    text = b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + (b"\r\n\r\n" if ended else b"")
    reader = RequestReader(heads(), LIMIT)
    with pytest.raises(InvalidRequest) as caught:
        feed_all(reader, text, step)
    assert caught.value.http_status == 431


def test_a_tls_handshake_is_refused_with_its_first_byte() -> None:
    with pytest.raises(InvalidRequest, match="a TLS handshake came to a port without TLS"):
        RequestReader(heads(), 1000).feed(memoryview(b"\x16"))


def test_a_body_beyond_the_limit_is_refused_unread() -> None:
    reader = RequestReader(heads(), LIMIT)
    read(reader, b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))
    with pytest.raises(
        InvalidRequest, match=r"request JSON size of 1001 bytes exceeds .* 1000 bytes.*--http-max-input-size"
    ):
        read(reader, b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n")


def test_a_raw_tensor_beyond_the_limit_is_told_as_one() -> None:
    reader = RequestReader(heads(), LIMIT)
    with pytest.raises(InvalidRequest, match=r"Raw input has a byte_size \(1001 bytes\) that exceeds the maximum"):
        read(reader, b"POST / HTTP/1.1\r\nInference-Header-Content-Length: 0\r\nContent-Length: 1001\r\n\r\n")


@pytest.mark.parametrize("lines", [b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"])
def test_chunks_win_over_a_length_and_end_the_connection(lines: bytes) -> None:
    for text in (lines, b"\r\n".join([*reversed(lines.split(b"\r\n")[:-1]), b""])):
        reader = RequestReader(heads(), LIMIT)
        rest = reader.feed(memoryview(b"POST / HTTP/1.1\r\n" + text + b"\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1"))
        head, body = reader.take()
        assert bytes(body) == b"abc"
        assert head.connection_line == CLOSE_LINE
        assert bytes(rest) == b"GET / HTTP/1.1"


def test_a_body_has_a_limit_of_chunks() -> None:
    decoder = ChunkedDecoder(10**6)
    feed_all(decoder, b"1\r\na\r\n" * MAX_CHUNKS, 1 << 16)
    assert len(decoder.body) == MAX_CHUNKS
    with pytest.raises(InvalidRequest, match="Chunked request body exceeds maximum of 65536 non-empty chunks"):
        decoder.feed(memoryview(b"1\r\na\r\n"))


def test_nothing_is_read_after_close() -> None:
    reader = RequestReader(heads(), LIMIT)
    reader.close()
    assert read(reader, STREAM) == []


def head(*lines: str) -> Head:
    return parse_head("\r\n".join([*lines, "", ""]).encode("latin-1"))


def test_what_a_head_says() -> None:
    parsed = head(
        "POST /v2/models/m/infer HTTP/1.1",
        "content-LENGTH: 12",
        "Inference-Header-Content-Length: 0",
        "Content-Encoding: GZip",
        "Accept-Encoding: br",
        "Accept-Encoding: gzip;q=0.5",
        "Expect: 100-Continue",
        "Upgrade: h2c",
    )
    assert (parsed.method, parsed.target) == (b"POST", b"/v2/models/m/infer")
    assert (parsed.content_length, parsed.header_length, parsed.chunked) == (12, 0, False)
    assert (parsed.content_encoding, parsed.accept_encoding) == (b"gzip", b"br,gzip;q=0.5")
    assert parsed.expect == b"100-continue"
    assert head("GET / HTTP/1.1").header_length is None


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (("GET / HTTP/1.1",), b""),
        (("GET / HTTP/1.1", "Connection: keep-alive"), b""),
        (("GET / HTTP/1.1", "Connection: Close"), b"Connection: close\r\n"),
        (("GET / HTTP/1.1", "Connection: x, close"), b"Connection: close\r\n"),
        (("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket"), b""),
        (("GET / HTTP/1.0",), b"Connection: close\r\n"),
        (("GET / HTTP/1.0", "Connection: keep-alive"), b"Connection: keep-alive\r\n"),
    ],
)
def test_how_the_connection_goes_on(lines: tuple[str, ...], line: bytes) -> None:
    assert head(*lines).connection_line == line


def test_the_cache_of_heads_is_bounded() -> None:
    cache = heads()
    for number in range(2 * MAX_CACHED_HEADS):
        text = b"GET /%d HTTP/1.1\r\n\r\n" % number
        assert cache.get(text) is cache.get(text)
        assert len(cache.cached) <= MAX_CACHED_HEADS
    cache.cached.clear()
    cache.get(b"GET / HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n")
    assert not cache.cached


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_waited_for(garbage: bytes) -> None:
    reader = RequestReader(heads(), LIMIT)
    try:
        read(reader, garbage + b"\r\n\r\n")
    except InvalidRequest as exc:
        assert exc.http_status in (400, 431)  # noqa: PT017 (either outcome is right)
