"""The HTTP/2 codec against the h2 library, and its header blocks against hpack."""

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.codec.http2 import events as ours
from efserve.codec.http2 import frames as h2
from efserve.codec.http2.connection import Connection
from efserve.codec.http2.frames import ErrorCode
from efserve.codec.http2.headers import HeaderDecoder, encode_headers
from efserve.codec.http2.limits import Limits
from http2_pair import (
    HEAD,
    REQUEST,
    TRAILERS,
    Pair,
    goaway_code,
    headers,
    raw_server,
    reset_codes,
    sent,
)

# With a client that keeps the rules


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 100, 20_000, 300_000])
def test_a_body_comes_back(size: int, chunk: int) -> None:
    pair = Pair(chunk=chunk)
    body = bytes(range(256)) * (size // 256 + 1)
    number = pair.ask(body[:size])
    assert bytes(pair.answers.get(number, b"")) == body[:size]
    assert [type(event) for event in pair.seen][-2:] == [TrailersReceived, StreamEnded]
    assert not pair.server.streams


def test_windows_of_one_byte() -> None:
    pair = Pair(Limits(stream_window=1, connection_window=1))
    pair.client.update_settings({4: 1})
    pair.run()
    number = pair.ask(b"hello world")
    assert pair.answers[number] == b"hello world"


def test_padding_and_priority() -> None:
    pair = Pair()
    number = pair.ask(b"x" * 300_000, pad=200)
    assert pair.answers[number] == b"x" * 300_000
    pair.client.send_headers(3, REQUEST, end_stream=True, priority_weight=7, priority_depends_on=1)
    pair.client.prioritize(5, weight=3)
    pair.run()
    assert not pair.server.closed


def test_64_mb_both_ways() -> None:
    pair = Pair()
    body = bytes(64 * 2**20)
    assert pair.answers[pair.ask(body)] == body


def test_streams_share_the_connections_window() -> None:
    pair = Pair()
    numbers = []
    for _ in range(5):
        number = pair.client.get_next_available_stream_id()
        pair.client.send_headers(number, REQUEST)
        pair.client.send_data(number, b"y" * 13_000, end_stream=True)
        numbers.append(number)
    pair.run(acknowledge=False)
    had = [len(pair.answers.get(number, b"")) for number in numbers]
    assert sum(had) == 65_000  # within the window of 65,535
    more = [pair.ask(b"z" * 13_000) for _ in range(2)]
    pair.run()
    assert pair.server.blocked_bytes > 0 or all(pair.answers.get(number) for number in more)


def test_continuation() -> None:
    pair = Pair()
    pair.client.send_headers(1, [*REQUEST, (b"long", b"v" * 20_000)], end_stream=True)
    pair.run()
    assert any(isinstance(event, ResponseReceived) for event in pair.seen)


def test_a_long_header_block_is_cut_for_the_peer() -> None:
    server = raw_server()
    (head,) = server.receive(headers(flags=h2.END_HEADERS | h2.END_STREAM))
    assert isinstance(head, ours.HeadReceived)
    server.send_headers(head.stream, encode_headers([(b":status", b"200"), (b"m", b"t" * 40_000)]), end=True)
    kinds = [(kind, flags) for kind, flags, _, _ in sent(server)]
    assert kinds == [(h2.HEADERS, h2.END_STREAM), (h2.CONTINUATION, 0), (h2.CONTINUATION, h2.END_HEADERS)]


def test_settings_that_shrink_the_window_below_zero() -> None:
    pair = Pair()
    pair.client.update_settings({4: 100})
    pair.run()
    number = pair.client.get_next_available_stream_id()
    pair.client.send_headers(number, REQUEST)
    pair.client.send_data(number, b"q" * 500, end_stream=True)
    pair.run(acknowledge=False)
    assert len(pair.answers[number]) == 100
    pair.client.update_settings({4: 50})
    pair.run(acknowledge=False)
    assert len(pair.answers[number]) == 100
    pair.client.update_settings({4: 1000})
    pair.run()
    assert len(pair.answers[number]) == 500


def test_a_smaller_header_table_is_confirmed() -> None:
    server = raw_server()
    (event,) = server.receive(h2.settings_frame({h2.HEADER_TABLE_SIZE: 0}) + headers(flags=5))
    assert isinstance(event, ours.HeadReceived)
    server.take()
    server.send_answer(event.stream, HEAD, [b"body"], TRAILERS)
    blocks = [payload for kind, _, _, payload in sent(server) if kind == h2.HEADERS]
    assert blocks == [b"\x20" + HEAD, TRAILERS]
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    assert next(iter(decoder.decode(blocks[0], raw=True))) == (b":status", b"200")


def test_ping_is_answered() -> None:
    server = raw_server()
    assert not server.receive(h2.frame(h2.PING, 0, 0, b"12345678"))
    assert sent(server) == [(h2.PING, h2.ACK, 0, b"12345678")]
    server.ping()
    ((_, _, _, payload),) = sent(server)
    server.receive(h2.frame(h2.PING, h2.ACK, 0, payload))
    assert server.pongs == 1


def test_going_away_lets_streams_finish_and_refuses_new_ones() -> None:
    server = raw_server()
    (event,) = server.receive(headers(1, 5))
    assert isinstance(event, ours.HeadReceived)
    server.go_away()
    assert not server.receive(headers(3, 5))
    frames = sent(server)
    assert goaway_code(frames) == ErrorCode.NO_ERROR
    assert reset_codes(frames) == {3: ErrorCode.REFUSED_STREAM}
    server.send_answer(event.stream, HEAD, [b""], TRAILERS)
    assert sent(server)[-1][0] == h2.HEADERS


def test_an_answer_before_the_end_of_the_request_ends_the_stream() -> None:
    server = raw_server()
    (event,) = server.receive(headers())
    assert isinstance(event, ours.HeadReceived)
    server.send_headers(event.stream, HEAD, end=True)
    assert reset_codes(sent(server)) == {1: ErrorCode.NO_ERROR}
    assert not server.receive(h2.frame(h2.DATA, h2.END_STREAM, 1, b"late"))
    assert not sent(server)
    assert not server.closed


def test_a_reset_drops_what_was_queued() -> None:
    server = raw_server()
    (event,) = server.receive(headers(flags=5))
    assert isinstance(event, ours.HeadReceived)
    server.send_answer(event.stream, HEAD, [bytes(200_000)], TRAILERS)
    assert server.blocked_bytes == 200_000 - 65_535
    (ended,) = server.receive(h2.frame(h2.RST_STREAM, 0, 1, h2.UINT32.pack(ErrorCode.CANCEL)))
    assert isinstance(ended, ours.StreamEnded)
    assert ended.code == ErrorCode.CANCEL
    assert not server.blocked_bytes
    assert not server.streams


# Header blocks


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """Blocks of an encoder that indexes, does not index, changes the table's size; with repeats."""
    encoder, made = Encoder(), []
    names = st.sampled_from([b"a", b"b", b":path", b"long"])
    for _ in range(draw(st.integers(1, 12))):
        if draw(st.integers(0, 5)) == 0:
            encoder.header_table_size = draw(st.sampled_from([0, 64, 200, 4096]))
        fields = draw(st.lists(st.tuples(names, st.sampled_from([b"1", b"2", b"x" * 60])), min_size=1, max_size=4))
        made.append(encoder.encode([(n, v, draw(st.booleans())) for n, v in fields], huffman=draw(st.booleans())))
        made += [made[-1]] * draw(st.integers(0, 2))
        if draw(st.booleans()):
            made.append(draw(st.sampled_from(made)))
    return made


@given(blocks())
@settings(max_examples=300, deadline=None)
def test_remembered_blocks_are_what_a_decoder_without_memory_says(sequence: list[bytes]) -> None:
    """Also after changes of the dynamic table: any sequence of blocks, valid for an encoder or not."""
    remembering, plain = HeaderDecoder(65_536), Decoder()
    for block in sequence:
        try:
            expected = tuple((bytes(n), bytes(v)) for n, v in plain.decode(block, raw=True))
        except HPACKError:
            with pytest.raises(h2.ConnectionFault):
                remembering.decode(block)
            return
        assert remembering.decode(block).fields == expected


def test_a_repeated_block_is_decoded_once() -> None:
    decoder, encoder = HeaderDecoder(65_536), Encoder()
    first, second = encoder.encode(REQUEST), encoder.encode(REQUEST)
    assert first != second
    assert decoder.decode(first).fields == decoder.decode(second).fields
    assert decoder.decode(second) is decoder.decode(second)
    same = decoder.decode(second)
    decoder.decode(encoder.encode([(b"new", b"entry")]))  # shifts the table: the same bytes mean something else now
    assert decoder.decode(second) is not same


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=300)), max_size=6))
def test_our_blocks_are_read_by_others(fields: list[tuple[bytes, bytes]]) -> None:
    assert list(Decoder().decode(encode_headers(fields), raw=True)) == fields


# Our client


def test_our_client_with_our_server() -> None:
    client, server = Connection(client=True), Connection()
    stream = client.begin(encode_headers(REQUEST))
    client.send_data(stream, [b"question" * 20_000], end=True)
    told: list[tuple[object, ...]] = []
    answered = False
    while up := client.take():
        for event in server.receive(b"".join(map(bytes, up))):
            if isinstance(event, ours.DataReceived):
                server.give_back(event.stream, len(event.data))
            if isinstance(event, ours.DataReceived) and event.ended and not answered:
                server.send_answer(event.stream, HEAD, [b"answer" * 30_000], TRAILERS)
                answered = True
        down = b"".join(map(bytes, server.take()))
        for part in [down]:
            for event in client.receive(part):
                if isinstance(event, ours.DataReceived):
                    client.give_back(event.stream, len(event.data))
                    told.append(("data", len(event.data)))
                elif isinstance(event, ours.TrailersReceived):
                    told.append(("trailers", event.head.get(b"grpc-status")))
    assert told[-1] == ("trailers", b"0")
    assert sum(size for kind, size in told if kind == "data" and isinstance(size, int)) == 180_000
    assert not client.streams
    assert not server.streams


def test_h2_sees_our_goaway() -> None:
    pair = Pair()
    pair.run()
    pair.server.close(ErrorCode.ENHANCE_YOUR_CALM, "too much")
    pair.run()
    (event,) = [event for event in pair.seen if isinstance(event, ConnectionTerminated)]
    assert event.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert event.additional_data == b"too much"


def test_h2_sees_our_reset() -> None:
    pair = Pair()
    pair.client.send_headers(1, REQUEST)
    pair.run()
    pair.server.reset(pair.server.streams[1], ErrorCode.CANCEL)
    pair.run()
    assert [event.error_code for event in pair.seen if isinstance(event, StreamReset)] == [ErrorCodes.CANCEL]
