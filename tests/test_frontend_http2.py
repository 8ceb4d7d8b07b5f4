"""One HTTP/2 connection of the gRPC port over a transport in memory: timeouts, draining, what a slow client costs."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from efserve.codec.grpc import MessageReader, compressed
from efserve.codec.http2 import frames as h2
from efserve.codec.http2.headers import encode_headers
from efserve.frontend.grpc import Methods
from efserve.frontend.http2 import Http2Connection, Hub, Limits
from efserve.frontend.routes import Routes
from fakes import FakeModel, FakeService, MemoryTransport, identity_config

HELLO = h2.PREFACE + h2.settings_frame({})
HEAD = encode_headers(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        (b"content-type", b"application/grpc"),
    ]
)
LIMITS = Limits(head_s=10, stalled_s=30, silent_s=60, linger_s=2)


class Client:
    """The other end of a connection in memory."""

    def __init__(self, *models: FakeModel, peer: str = "127.0.0.1") -> None:
        service = FakeService(*models)
        methods = Methods(service, Routes(service, "efserve", 1 << 20), 1 << 20)
        self.hub = Hub(methods.begin, LIMITS)
        self.connection = Http2Connection(self.hub)
        self.transport = MemoryTransport(self.connection, (peer, 9))

    def send(self, *parts: bytes) -> list[tuple[int, int, bytes]]:
        """Type, stream and payload of the frames that come back."""
        self.transport.send(b"".join(parts))
        data, found, at = self.transport.taken(), [], 0
        while at < len(data):
            head, _, stream_id = h2.HEAD.unpack_from(data, at)
            found.append((head & 255, stream_id, data[at + 9 : at + 9 + (head >> 8)]))
            at += 9 + (head >> 8)
        return found


def call(stream_id: int, name: str = "identity") -> bytes:
    """A whole call of ModelInfer."""
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[bytes(64)])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    body = request.SerializeToString()
    message = b"\0" + len(body).to_bytes(4, "big") + body
    return h2.frame(h2.HEADERS, 4, stream_id, HEAD) + h2.frame(h2.DATA, 1, stream_id, message)


@pytest.mark.parametrize(
    ("peer", "says"),
    [("127.0.0.1", b"explicit model load"), ("::1", b"explicit model load"), ("192.0.2.1", b"only for clients on")],
)
@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_models_are_controlled_from_this_machine(peer: str, says: bytes, name: str) -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()), peer=peer)
        body = pb.RepositoryModelLoadRequest(model_name="identity").SerializeToString()  # the other's is alike
        path = encode_headers([(b":path", b"/inference.GRPCInferenceService/" + name.encode())])
        head = HEAD.replace(encode_headers([(b":path", b"/inference.GRPCInferenceService/ModelInfer")]), path)
        message = b"\0" + len(body).to_bytes(4, "big") + body
        found = client.send(HELLO, h2.frame(h2.HEADERS, 4, 1, head), h2.frame(h2.DATA, 1, 1, message))
        ((_, _, block),) = [entry for entry in found if entry[1] == 1]
        assert says in block

    run(test)


def run(test: Callable[[], Any]) -> None:
    """In an event loop, which connections need."""

    async def main() -> None:
        test()

    asyncio.run(main())


def test_a_call() -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        kinds = [kind for kind, stream_id, _ in client.send(HELLO, call(1), call(3)) if stream_id]
        assert kinds == [h2.HEADERS, h2.DATA, h2.HEADERS] * 2
        assert client.connection.pending == 0

    run(test)


@pytest.mark.parametrize("sent", [b"", HELLO[:30], HELLO + HEAD[:3], HELLO + h2.frame(h2.HEADERS, 0, 1, HEAD)])
def test_half_a_frame_is_not_waited_for(sent: bytes) -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        client.send(sent)
        for second in range(12):
            assert client.transport.is_open
            client.hub.group.sweep(100.0 + second)
        assert client.transport.is_aborted

    run(test)


def test_a_silent_client_is_asked_and_then_given_up() -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        client.send(HELLO)
        for second in range(61):
            client.hub.group.sweep(float(second))
        assert not client.send()
        client.hub.group.sweep(61.0)
        ((kind, _, payload),) = client.send()
        assert kind == h2.PING
        client.send(h2.frame(h2.PING, h2.ACK, 0, payload))
        for second in range(62, 122):
            client.hub.group.sweep(float(second))
        assert client.transport.is_open
        for second in range(122, 140):
            client.hub.group.sweep(float(second))
        assert client.transport.is_aborted

    run(test)


@pytest.mark.parametrize("in_codec", [True, False])
def test_an_answer_that_is_not_taken(in_codec: bool) -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        client.send(h2.PREFACE + h2.settings_frame({4: 5 if in_codec else 65_535}), call(1))
        if not in_codec:
            client.transport.unsent_bytes = 100
        client.hub.group.sweep(0.0)
        client.hub.group.sweep(30.0)
        assert client.transport.is_open
        client.hub.group.sweep(31.0)
        assert client.transport.is_aborted

    run(test)


def test_nothing_is_read_while_the_client_takes_nothing() -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        client.send(HELLO)
        client.connection.pause_writing()
        assert not client.transport.reading
        client.connection.resume_writing()
        assert client.transport.reading

    run(test)


def test_a_lost_connection_cancels_what_waits() -> None:
    def test() -> None:
        model = FakeModel(identity_config(), held=True)
        client = Client(model)
        client.send(HELLO, call(1))
        client.transport.abort()
        (request,) = model.waiting
        assert request.cancelled
        model.finish(request)
        assert not client.hub.group.members

    run(test)


def test_draining_waits_for_answers() -> None:
    def test() -> None:
        model = FakeModel(identity_config(), held=True)
        client = Client(model)
        client.send(HELLO, call(1))
        client.hub.group.drain()
        assert [kind for kind, _, _ in client.send(call(3))] == [h2.GOAWAY, h2.RST_STREAM]
        assert not client.transport.has_eof
        model.finish(model.waiting[0])
        assert [kind for kind, _, _ in client.send()] == [h2.HEADERS, h2.DATA, h2.HEADERS, h2.GOAWAY]
        assert client.transport.has_eof
        client.hub.group.sweep(0.0)
        client.hub.group.sweep(3.0)
        assert client.transport.is_aborted

    run(test)


def test_an_idle_connection_is_drained_at_once() -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        client.send(HELLO)
        client.hub.group.drain()
        assert client.transport.has_eof

    run(test)


def test_a_fault_is_told_before_the_end() -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        frames = client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert frames[-1][0] == h2.GOAWAY
        assert client.transport.has_eof
        assert not client.send(b"more of it")

    run(test)


@pytest.mark.parametrize("accepted", [b"identity", b"identity, deflate, gzip"])
def test_answers_are_compressed_for_those_who_compress_and_take_it(accepted: bytes) -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        head = HEAD + encode_headers([(b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", accepted)])
        request = call(1)[9 + len(HEAD) + 9 + 5 :]
        body = h2.frame(h2.DATA, 1, 1, compressed([request], "gzip"))
        frames = client.send(HELLO, h2.frame(h2.HEADERS, 4, 1, head), body)
        (answer,) = [payload for kind, _, payload in frames if kind == h2.DATA]
        assert answer[0] == (b"gzip" in accepted)
        (message,) = MessageReader(1000, "gzip").feed(answer)
        assert list(pb.ModelInferResponse.FromString(bytes(message)).raw_output_contents) == [bytes(64)]

    run(test)


@pytest.mark.parametrize(("name", "value", "status"), [(b":method", b"GET", b"405"), (b"content-type", b"x", b"415")])
def test_what_is_not_grpc(name: bytes, value: bytes, status: bytes) -> None:
    def test() -> None:
        client = Client(FakeModel(identity_config()))
        fields = {b":method": b"POST", b":scheme": b"http", b":path": b"/x", b"content-type": b"application/grpc"}
        block = encode_headers([*{**fields, name: value}.items()])
        (answer,) = [payload for kind, _, payload in client.send(HELLO, h2.frame(h2.HEADERS, 5, 1, block)) if kind == 1]
        assert answer.endswith(status)

    run(test)


# Anything at all

METHODS = [
    b"/inference.GRPCInferenceService/ModelInfer",
    b"/inference.GRPCInferenceService/ModelStreamInfer",
    b"/inference.GRPCInferenceService/ModelReady",
    b"/inference.GRPCInferenceService/TraceSetting",
    b"/grpc.health.v1.Health/Watch",
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/nothing",
]
extra_fields = st.sampled_from(
    [
        (b"grpc-timeout", b"1S"),
        (b"grpc-timeout", b"x"),
        (b"grpc-encoding", b"gzip"),
        (b"grpc-encoding", b"br"),
        (b"a", b"b"),
    ]
)
ids = st.sampled_from([1, 3, 5, 7])
message = st.one_of(
    st.just(call(1)[9 + len(HEAD) + 9 :]), st.binary(max_size=12), st.just(b"\0\0\0\0\0"), st.just(b"\1\0\0\0\2ab")
)
heads = st.builds(
    lambda path, extra, number, flags: h2.frame(
        h2.HEADERS,
        flags,
        number,
        encode_headers(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path),
                (b"content-type", b"application/grpc"),
                extra,
            ]
        ),
    ),
    st.sampled_from(METHODS),
    extra_fields,
    ids,
    st.sampled_from([4, 5]),
)
bodies = st.builds(
    lambda number, flags, data: h2.frame(h2.DATA, flags, number, data), ids, st.sampled_from([0, 1]), message
)
resets = st.builds(lambda number: h2.frame(h2.RST_STREAM, 0, number, bytes(4)), ids)
windows = st.builds(h2.window_update, st.sampled_from([0, 1, 3]), st.sampled_from([1, 1000]))
tables = st.builds(h2.settings_frame, st.dictionaries(st.sampled_from([1, 3, 4]), st.integers(0, 70_000), max_size=2))


@given(
    st.lists(st.one_of(heads, bodies, bodies, resets, windows, tables), max_size=15), st.integers(1, 80), st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_client_sends_is_an_answer_and_not_a_traceback(frames: list[bytes], step: int, held: bool) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]  # the shortest way to a list
    log = logging.getLogger("efserve")

    def test() -> None:
        model = FakeModel(identity_config(), held=held)
        client = Client(model)
        data = HELLO + b"".join(frames)
        for at in range(0, len(data), step):
            client.transport.send(data[at : at + step])
        client.hub.group.drain()
        client.transport.abort()
        assert not client.hub.group.members
        assert all(request.cancelled for request in model.waiting)
        for request in list(model.waiting):
            model.finish(request)  # its answer goes nowhere

    log.addHandler(handler)
    try:
        run(test)
    finally:
        log.removeHandler(handler)
    assert not records


def test_unfinished_messages_are_bounded() -> None:
    """40 calls that each send 900 kB and do not end: the server takes some, and all of them in the end."""

    def test() -> None:
        client = Client(FakeModel(identity_config(dims=(-1,))))
        client.hub.most_held_bytes = most = 1 << 20
        client.connection = Http2Connection(client.hub)
        client.transport = MemoryTransport(client.connection, ("127.0.0.1", 9))
        window = client.hub.peer_limits.stream_window
        floats = 225_000
        request = pb.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(4 * floats)])
        request.inputs.add(name="input", datatype="FP32", shape=[1, floats])
        body = request.SerializeToString()
        message = b"\0" + len(body).to_bytes(4, "big") + body
        streams = {1 + 2 * n: 0 for n in range(40)}  # bytes sent of each, up to the last one
        room = dict.fromkeys(streams, window)
        answered = set()
        agreed = h2.frame(h2.SETTINGS, 1, 0)  # to the server's windows
        client.send(HELLO, agreed, *(h2.frame(h2.HEADERS, 4, stream_id, HEAD) for stream_id in streams))

        def send_what_may_be_sent(*, ends: bool) -> None:
            moved = True
            while moved:
                moved = False
                for stream_id, at in streams.items():
                    last = len(message) - (0 if ends else 1)
                    size = min(room[stream_id], last - at, 16_384)
                    if size > 0:
                        moved = True
                        streams[stream_id] += size
                        room[stream_id] -= size
                        end = streams[stream_id] == len(message)
                        frame = h2.frame(h2.DATA, 1 if end else 0, stream_id, message[at : at + size])
                        for kind, about, payload in client.send(frame):
                            if kind == h2.WINDOW_UPDATE and about:
                                room[about] += int.from_bytes(payload, "big")
                            elif kind == h2.HEADERS:
                                answered.add(about)

        send_what_may_be_sent(ends=False)
        held = sum(streams.values())
        assert most <= held <= most + len(streams) * window + window
        send_what_may_be_sent(ends=True)
        assert answered == set(streams)

    run(test)
