"""The HTTP/2 codec against peers that break the rules, or send anything at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.codec.http2 import events as ours
from efserve.codec.http2 import frames as h2
from efserve.codec.http2.connection import Connection
from efserve.codec.http2.frames import ErrorCode
from efserve.codec.http2.headers import encode_headers
from efserve.codec.http2.limits import Limits
from http2_pair import (
    REQUEST,
    SETTINGS,
    TRAILERS,
    Frame,
    goaway_code,
    headers,
    raw_server,
    reset_codes,
    sent,
)

CONNECTION_FAULTS = {
    "bad preface": (b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR),
    "no settings first": (h2.PREFACE + h2.frame(h2.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "settings on a stream": (h2.frame(h2.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings of 5 bytes": (h2.frame(h2.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "settings ack with payload": (h2.frame(h2.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "initial window": (h2.settings_frame({4: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
    "frame size too small": (h2.settings_frame({5: 16_383}), ErrorCode.PROTOCOL_ERROR),
    "enable push": (h2.settings_frame({2: 2}), ErrorCode.PROTOCOL_ERROR),
    "ping of 7 bytes": (h2.frame(h2.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "ping on a stream": (h2.frame(h2.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "push promise": (h2.frame(h2.PUSH_PROMISE, 4, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "huge frame": (h2.HEAD.pack(300_000 << 8, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "data on stream 0": (h2.frame(h2.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on an idle stream": (h2.frame(h2.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers on stream 0": (headers(0), ErrorCode.PROTOCOL_ERROR),
    "headers on an even stream": (headers(2), ErrorCode.PROTOCOL_ERROR),
    "headers on a skipped stream": (headers(5, 5) + headers(3, 5), ErrorCode.STREAM_CLOSED),
    "reset of an idle stream": (h2.frame(h2.RST_STREAM, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "reset of 3 bytes": (h2.frame(h2.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "reset of stream 0": (h2.frame(h2.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "goaway on a stream": (h2.frame(h2.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "window update of 0": (h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "window update of 3 bytes": (h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "window update of an idle stream": (h2.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    "window too large": (h2.window_update(0, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "priority of 4 bytes": (h2.frame(h2.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "padding too long": (h2.frame(h2.HEADERS, 0xC, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "padding without a byte": (h2.frame(h2.HEADERS, 0xC, 1), ErrorCode.PROTOCOL_ERROR),
    "priority cut short": (h2.frame(h2.HEADERS, 0x24, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "continuation alone": (h2.frame(h2.CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "interrupted block": (headers(1, 0) + h2.frame(h2.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "block of two streams": (headers(1, 0) + h2.frame(h2.CONTINUATION, 4, 3), ErrorCode.PROTOCOL_ERROR),
    "bad index": (h2.frame(h2.HEADERS, 4, 1, b"\xff\xff\x01"), ErrorCode.COMPRESSION_ERROR),
    "cut block": (h2.frame(h2.HEADERS, 4, 1, b"\x00\x7f"), ErrorCode.COMPRESSION_ERROR),
    "large table": (h2.frame(h2.HEADERS, 4, 1, b"\x3f\xe1\xff\x03"), ErrorCode.COMPRESSION_ERROR),
    "continuation flood": (
        headers(1, 0) + h2.frame(h2.CONTINUATION, 0, 1, bytes(1000)) * 40,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "empty continuations": (headers(1, 0) + h2.frame(h2.CONTINUATION, 0, 1) * 10_001, ErrorCode.ENHANCE_YOUR_CALM),
    "ping flood": (h2.frame(h2.PING, 0, 0, bytes(8)) * 10_001, ErrorCode.ENHANCE_YOUR_CALM),
    "settings flood": (SETTINGS * 10_001, ErrorCode.ENHANCE_YOUR_CALM),
    "empty data": (headers() + h2.frame(h2.DATA, 0, 1) * 10_001, ErrorCode.ENHANCE_YOUR_CALM),
    "header bomb": (
        h2.frame(h2.HEADERS, 4, 1, b"\x40\x01a\x7f\x81\x1e" + b"v" * 4000 + b"\xbe" * 16_000),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("case", CONNECTION_FAULTS)
def test_a_fault_that_ends_the_connection(case: str) -> None:
    data, code = CONNECTION_FAULTS[case]
    introduced = case not in ("bad preface", "no settings first")
    for step in (len(data), 1) if len(data) < 2000 else (len(data),):
        server = raw_server() if introduced else Connection()
        for at in range(0, len(data), step):
            server.receive(data[at : at + step])
        assert goaway_code(sent(server)) == code
        assert server.closed
        assert not server.streams
        assert not server.receive(b"more")
        assert not server.take()


BAD_HEADS = {
    "no path": [f for f in REQUEST if f[0] != b":path"],
    "empty path": [*REQUEST[:2], (b":path", b""), *REQUEST[3:]],
    "two methods": [(b":method", b"GET"), *REQUEST],
    "unknown pseudo": [(b":odd", b"1"), *REQUEST],
    "late pseudo": [*REQUEST[1:], REQUEST[0]],
    "upper case": [*REQUEST, (b"Upper", b"1")],
    "connection field": [*REQUEST, (b"connection", b"close")],
    "te": [*REQUEST[:4], (b"te", b"gzip")],
    "line break": [*REQUEST, (b"a", b"b\r\nc")],
    "bad length": [*REQUEST, (b"content-length", b"-1")],
    "response": [(b":status", b"200")],
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_bad_head_ends_its_stream(case: str) -> None:
    server = raw_server()
    assert not server.receive(headers(1, 4, BAD_HEADS[case]))
    assert reset_codes(sent(server)) == {1: ErrorCode.PROTOCOL_ERROR}
    assert len(server.receive(headers(3))) == 1


STREAM_FAULTS = {
    "data after the end": (headers(flags=5) + h2.frame(h2.DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "headers after the end": (headers(flags=5) + headers(1), ErrorCode.STREAM_CLOSED),
    "trailers without end": (headers() + h2.frame(h2.HEADERS, 4, 1, TRAILERS), ErrorCode.PROTOCOL_ERROR),
    "trailers with a pseudo field": (headers() + headers(1, 5), ErrorCode.PROTOCOL_ERROR),
    "window update of 0": (headers() + h2.frame(h2.WINDOW_UPDATE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "window too large": (headers() + h2.window_update(1, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "beyond the window": (headers() + h2.frame(h2.DATA, 0, 1, bytes(70_000)), ErrorCode.FLOW_CONTROL_ERROR),
    "more than content-length": (
        headers(fields=[*REQUEST, (b"content-length", b"3")]) + h2.frame(h2.DATA, 1, 1, b"four"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "less than content-length": (
        headers(fields=[*REQUEST, (b"content-length", b"3")]) + h2.frame(h2.DATA, 1, 1, b"2b"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "no body for content-length": (headers(1, 5, [*REQUEST, (b"content-length", b"3")]), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", STREAM_FAULTS)
def test_a_fault_that_ends_a_stream(case: str) -> None:
    data, code = STREAM_FAULTS[case]
    server = raw_server()
    server.receive(data)
    frames = sent(server)
    assert reset_codes(frames) == {1: code}
    assert goaway_code(frames) is None
    assert not server.streams
    assert len(server.receive(headers(3))) == 1


def test_too_many_streams_are_refused() -> None:
    server = raw_server(Limits(streams=2))
    for number in (1, 3, 5):
        server.receive(headers(number))
    assert reset_codes(sent(server)) == {5: ErrorCode.REFUSED_STREAM}
    assert len(server.streams) == 2


def test_rapid_reset_costs_the_connection() -> None:
    server = raw_server()
    cancel = h2.UINT32.pack(ErrorCode.CANCEL)
    frames: list[Frame] = []
    for number in range(1, 200_001, 2):
        server.receive(headers(number) + h2.frame(h2.RST_STREAM, 0, number, cancel))
        assert len(server.streams) <= 1
        frames += sent(server)
    assert goaway_code(frames) == ErrorCode.ENHANCE_YOUR_CALM
    assert len(frames) == 1


def test_resets_that_we_are_led_to_count_too() -> None:
    server = raw_server()
    for number in range(1, 2100, 2):
        server.receive(headers(number) + h2.frame(h2.WINDOW_UPDATE, 0, number, bytes(4)))
    assert goaway_code(sent(server)) == ErrorCode.ENHANCE_YOUR_CALM


def test_calm_forgives() -> None:
    server = raw_server()
    for number in range(1, 5000, 2):
        server.receive(headers(number) + h2.frame(h2.RST_STREAM, 0, number, bytes(4)))
        server.calm()
    assert not server.closed


kinds = st.integers(0, 11)
random_frames = st.builds(
    h2.frame,
    kinds,
    st.sampled_from([0, 1, 4, 5, 8, 9, 0xC, 0x2D, 255]),
    st.sampled_from([0, 1, 2, 3, 5, 7, (1 << 31) | 3]),
    st.one_of(st.binary(max_size=20), st.just(encode_headers(REQUEST)), st.just(bytes(4)), st.just(bytes(8))),
)
good_frames = st.sampled_from(
    [headers(1), headers(3, 5), headers(5), h2.frame(h2.DATA, 0, 1, b"abc"), h2.frame(h2.DATA, 1, 1, b"end"), SETTINGS]
)


@given(st.lists(st.one_of(random_frames, good_frames), max_size=12), st.data())
@settings(max_examples=300, deadline=None)
def test_any_frames_cut_anywhere_mean_the_same(pieces: list[bytes], data: st.DataObject) -> None:
    """Events and answers do not depend on how the bytes arrive, and nothing raises."""
    stream = h2.PREFACE + SETTINGS + b"".join(pieces)
    whole, cut = Connection(), Connection()
    one = [repr(event) for event in play(whole, [stream])]
    step = data.draw(st.integers(1, 9))
    many = [repr(event) for event in play(cut, [stream[at : at + step] for at in range(0, len(stream), step)])]
    assert one == many
    assert b"".join(whole.take()) == b"".join(cut.take())
    assert whole.closed == cut.closed


def play(server: Connection, parts: list[bytes]) -> list[tuple[object, ...]]:
    """What happened on each stream: data joined, heads as fields."""
    told: list[tuple[object, ...]] = []
    for part in parts:
        for event in server.receive(part):
            number = getattr(getattr(event, "stream", None), "id", None)
            if isinstance(event, ours.DataReceived):
                last = told[-1] if told else ()
                if last[:2] == ("data", number) and not last[3]:
                    told[-1] = ("data", number, bytes(last[2]) + bytes(event.data), event.ended)  # type: ignore[call-overload]  # bytes
                else:
                    told.append(("data", number, bytes(event.data), event.ended))
            elif isinstance(event, ours.HeadReceived | ours.TrailersReceived):
                told.append((type(event).__name__, number, event.head.fields))
            elif isinstance(event, ours.StreamEnded):
                told.append(("ended", number, event.code))
            else:
                told.append((type(event).__name__, number))
    return told


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_garbage_never_raises(data: bytes) -> None:
    server = raw_server()
    server.receive(data)
    server.take()
