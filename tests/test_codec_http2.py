"""The HTTP/2 codec against the h2 library, and against peers that break the rules."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.codec.http2 import events as ours
from efserve.codec.http2 import frames as h2
from efserve.codec.http2.connection import Connection
from efserve.codec.http2.frames import ErrorCode
from efserve.codec.http2.headers import HeaderDecoder, encode_headers
from efserve.codec.http2.limits import Limits

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
HEAD = encode_headers([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = encode_headers([(b"grpc-status", b"0")])
SETTINGS = h2.settings_frame({})
Frame = tuple[int, int, int, bytes]


class Pair:
    """Our server and an h2 client, joined in memory; the server answers each whole request with its own body."""

    def __init__(self, limits: Limits | None = None, *, chunk: int = 1 << 20) -> None:
        self.server = Connection(limits=limits or Limits())
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.client.initiate_connection()
        self.chunk = chunk
        self.bodies: dict[int, bytearray] = {}
        self.answers: dict[int, bytearray] = {}
        self.seen: list[object] = []

    def run(self, *, acknowledge: bool = True) -> None:
        """Carry bytes both ways until nobody has anything to say."""
        while True:
            up, down = self.client.data_to_send(), b"".join(self.server.take())
            if not (up or down):
                return
            for at in range(0, len(up), self.chunk):
                for told in self.server.receive(up[at : at + self.chunk]):
                    self.on_server(told)
            for at in range(0, len(down), self.chunk):
                for event in self.client.receive_data(down[at : at + self.chunk]):
                    self.seen.append(event)
                    if isinstance(event, DataReceived):
                        self.answers.setdefault(event.stream_id, bytearray()).extend(event.data)
                        if acknowledge and event.flow_controlled_length:
                            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def on_server(self, event: ours.Event) -> None:
        if isinstance(event, ours.HeadReceived):
            self.bodies[event.stream.id] = bytearray()
        elif isinstance(event, ours.DataReceived):
            self.bodies[event.stream.id] += event.data
            self.server.give_back(event.stream, len(event.data))
        ended = isinstance(event, ours.TrailersReceived) or getattr(event, "ended", False)
        if ended and isinstance(event, ours.HeadReceived | ours.DataReceived | ours.TrailersReceived):
            body = bytes(self.bodies[event.stream.id])
            self.server.send_answer(event.stream, HEAD, [body], TRAILERS)

    def ask(self, body: bytes, *, pad: int | None = None) -> int:
        """Send a whole request, as fast as the server's windows allow."""
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, REQUEST)
        rest = memoryview(body)
        while len(rest):
            room = min(self.client.local_flow_control_window(number), self.client.max_outbound_frame_size) - (
                pad + 1 if pad else 0
            )
            assert room > 0 or self.pending(), "the server's window stays shut"
            part = rest[: max(room, 0)]
            if len(part):
                self.client.send_data(number, bytes(part), pad_length=pad)
            rest = rest[len(part) :]
            self.run()
        self.client.end_stream(number)
        self.run()
        return number

    def pending(self) -> bool:
        self.run()
        return True


def raw_server(limits: Limits | None = None) -> Connection:
    """A server that has been introduced to its client."""
    server = Connection(limits=limits or Limits())
    assert not server.receive(h2.PREFACE + SETTINGS)
    server.take()
    return server


def frames_of(data: bytes) -> list[Frame]:
    """Type, flags, stream and payload of each frame."""
    found, at = [], 0
    while at < len(data):
        head, flags, stream_id = h2.HEAD.unpack_from(data, at)
        found.append((head & 255, flags, stream_id, data[at + 9 : at + 9 + (head >> 8)]))
        at += 9 + (head >> 8)
    return found


def sent(connection: Connection) -> list[Frame]:
    return frames_of(b"".join(connection.take()))


def headers(stream_id: int = 1, flags: int = h2.END_HEADERS, fields: list[tuple[bytes, bytes]] = REQUEST) -> bytes:
    return h2.frame(h2.HEADERS, flags, stream_id, encode_headers(fields))


def goaway_code(frames: list[Frame]) -> int | None:
    last = [payload for kind, _, _, payload in frames if kind == h2.GOAWAY]
    return int.from_bytes(last[-1][4:8], "big") if last else None


def reset_codes(frames: list[Frame]) -> dict[int, int]:
    return {number: int.from_bytes(data, "big") for kind, _, number, data in frames if kind == h2.RST_STREAM}


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


# With a client that breaks the rules

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


# Anything at all

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
