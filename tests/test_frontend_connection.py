"""One connection over a transport in memory: order of answers, flow control, timeouts, cancellation, draining."""

import asyncio
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.errors import InferenceFailed, Unavailable
from efserve.frontend.connection import Connection, Hub, Limits
from efserve.frontend.heads import Heads
from efserve.frontend.routes import Routes
from efserve.inference import Outcome
from fakes import FakeModel, FakeService, MemoryTransport, identity_config

MAX_BYTES = 200_000
LIMITS = Limits(keep_alive_s=75, head_s=10, stalled_s=30, linger_s=2, pipelined=4)


def hub_of(*models: FakeModel) -> Hub:
    routes = Routes(FakeService(*models), "efserve", MAX_BYTES)
    return Hub(Heads(routes.resolve, MAX_BYTES), MAX_BYTES, LIMITS)


def connect(hub: Hub) -> MemoryTransport:
    return MemoryTransport(Connection(hub))


def infer_bytes(values: list[float], *, extra: str = "", model: str = "identity") -> bytes:
    item = {"name": "input", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    text = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    tail = np.resize(np.array(values, np.float32), 16).tobytes()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nInference-Header-Content-Length: {len(text)}\r\n{extra}"
    )
    return lines.encode() + b"Content-Length: %d\r\n\r\n" % (len(text) + 64) + text + tail


def values_in(data: bytes) -> list[float]:
    """First value of each infer answer in a stream of answers."""
    values = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK"), head
        length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
        values.append(float(np.frombuffer(rest[length - 64 : length], np.float32)[0]))
        data = rest[length:]
    return values


def test_golden_answer() -> None:
    transport = connect(hub_of(FakeModel(identity_config())))
    for _ in range(2):  # a new head, then a known one
        transport.send(infer_bytes([1.5]))
        text = (
            b'{"model_name":"identity","model_version":"1","outputs":[{"name":"output","datatype":"FP32",'
            b'"shape":[1,16],"parameters":{"binary_data_size":64}}]}'
        )
        assert (
            transport.taken()
            == (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(text), len(text) + 64)
            )
            + text
            + np.full(16, 1.5, np.float32).tobytes()
        )


STREAM = (
    b"".join(infer_bytes([number]) for number in range(3))
    + b"GET /v2/health/live HTTP/1.1\r\n\r\n"
    + infer_bytes([3.0], extra="Expect: 100-continue\r\n")
    + b"GET /none HTTP/1.1\r\n\r\n"
)


def without_continue(answers: bytes) -> bytes:
    """A client whose body comes late is told to send it."""
    return answers.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_every_cut_of_the_stream_gets_the_same_answers(cuts: list[int]) -> None:
    whole = connect(hub_of(FakeModel(identity_config())))
    whole.send(STREAM)
    cut = connect(hub_of(FakeModel(identity_config())))
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, stop in itertools.pairwise(edges):
        cut.send(STREAM[start:stop])
    assert without_continue(cut.taken()) == whole.taken()


def test_byte_by_byte_gets_the_same_answers() -> None:
    whole, bytewise = (connect(hub_of(FakeModel(identity_config()))) for _ in range(2))
    whole.send(STREAM)
    for byte in STREAM:
        bytewise.send(bytes([byte]))
    assert without_continue(bytewise.taken()) == whole.taken()


@given(st.permutations(range(4)))
def test_pipelined_answers_keep_the_order_of_requests(order: list[int]) -> None:
    async def run() -> None:
        model = FakeModel(identity_config(), held=True)
        transport = connect(hub_of(model))
        transport.send(b"".join(infer_bytes([number]) for number in range(4)))
        requests = list(model.waiting)
        written = b""
        for number in order:
            model.finish(requests[number])
            written += transport.taken()
        assert values_in(written) == [0, 1, 2, 3]

    asyncio.run(run())


def test_reading_stops_at_the_limit_of_pipelined_requests_and_goes_on() -> None:
    async def run() -> None:
        model = FakeModel(identity_config(), held=True)
        transport = connect(hub_of(model))
        transport.send(b"".join(infer_bytes([number]) for number in range(7)))
        assert (len(model.waiting), transport.reading) == (LIMITS.pipelined, False)
        written = b""
        while model.waiting:
            model.finish(model.waiting[0])
            await asyncio.sleep(0)
            written += transport.taken()
        assert values_in(written) == [0, 1, 2, 3, 4, 5, 6]
        assert transport.reading
        transport.send(infer_bytes([7]))
        assert len(model.waiting) == 1

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    hub = hub_of(FakeModel(identity_config()))
    transport = connect(hub)
    (connection,) = hub.group.members
    assert isinstance(connection, Connection)
    connection.pause_writing()
    assert not transport.reading
    connection.resume_writing()
    assert transport.reading
    transport.send(infer_bytes([1]))
    assert values_in(transport.taken()) == [1]


def test_a_gone_client_cancels_its_requests_and_gets_no_answer() -> None:
    model = FakeModel(identity_config(), held=True)
    hub = hub_of(model)
    transport = connect(hub)
    transport.send(infer_bytes([1]) + infer_bytes([2]))
    requests = list(model.waiting)
    transport.close()
    assert [request.cancelled for request in requests] == [True, True]
    assert not hub.group.members
    for request in requests:
        model.finish(request)
    assert transport.taken() == b""


def test_an_answered_request_is_not_cancelled_later() -> None:
    model = FakeModel(identity_config(), held=True)
    transport = connect(hub_of(model))
    transport.send(infer_bytes([1]))
    request = model.waiting[0]
    model.finish(request)
    transport.close()
    assert not request.cancelled


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (InferenceFailed("it raised"), b"500 Internal Server Error"),
        (Unavailable("it is full"), b"503 Service Unavailable"),
    ],
)
def test_errors_of_the_model_reach_the_client(outcome: Outcome, status: bytes) -> None:
    transport = connect(hub_of(FakeModel(identity_config(), lambda request: outcome)))
    transport.send(infer_bytes([1]))
    answer = transport.taken()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.endswith(b'\r\n\r\n{"error":"%b"}' % str(outcome).encode())
    assert transport.is_open


def test_a_bug_costs_one_answer_only(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object) -> Outcome:
        raise ZeroDivisionError

    hub = hub_of(FakeModel(identity_config(), broken), FakeModel(identity_config("odd"), lambda request: ()))
    transport = connect(hub)
    for model in ("identity", "odd"):
        transport.send(infer_bytes([1], model=model))
        assert b"500 Internal Server Error" in transport.taken()
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    transport.send(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
    assert transport.taken().startswith(b"HTTP/1.1 200 OK")


def test_connection_close_and_http_1_0_are_honoured() -> None:
    for request in (
        b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
    ):
        transport = connect(hub_of())
        transport.send(request + b"GET /v2 HTTP/1.1\r\n\r\n")
        assert transport.taken().startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        assert transport.has_eof
    transport = connect(hub_of())
    transport.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert transport.taken().startswith(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n")
    assert not transport.has_eof


def test_what_is_unreadable_is_answered_last_and_the_client_may_still_send() -> None:
    model = FakeModel(identity_config(), held=True)
    hub = hub_of(model)
    transport = connect(hub)
    transport.send(infer_bytes([1]) + b"POST /v2 HTTP/1.1\r\nContent-Length: 200001\r\n\r\n" + bytes(1000))
    assert transport.taken() == b""
    model.finish(model.waiting[0])
    first, _, second = transport.taken().partition(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")
    assert values_in(first) == [1]
    assert b"request JSON size of 200001 bytes exceeds the maximum allowed input size of 200000 bytes" in second
    assert transport.has_eof
    transport.send(bytes(100_000))
    hub.group.sweep(0)
    hub.group.sweep(1.9)
    assert transport.is_open
    hub.group.sweep(2.1)
    assert transport.is_aborted


def test_expect_continue_waits_for_earlier_answers() -> None:
    whole = infer_bytes([2], extra="Expect: 100-continue\r\n")
    end = whole.index(b"\r\n\r\n") + 4
    model = FakeModel(identity_config(), held=True)
    transport = connect(hub_of(model))
    transport.send(whole[:end])
    assert transport.taken() == b"HTTP/1.1 100 Continue\r\n\r\n"
    transport.send(whole[end:])
    transport.send(whole[:end])
    assert transport.taken() == b""
    model.finish(model.waiting[0])
    written = transport.taken()
    assert written.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    transport.send(whole[end:])
    model.finish(model.waiting[0])
    assert values_in(transport.taken()) == [2]


def test_continue_is_said_once() -> None:
    transport = connect(hub_of())
    transport.send(b"POST /v2 HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
    for byte in b"1\r\nx\r\n0\r\n\r\n":
        transport.send(bytes([byte]))
    assert transport.taken().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 405 Method Not Allowed\r\n")


def test_expect_continue_is_refused_for_what_is_too_large() -> None:
    transport = connect(hub_of())
    transport.send(b"POST /v2 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 200001\r\n\r\n")
    assert transport.taken().startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")


def test_no_continue_when_the_body_is_already_there() -> None:
    transport = connect(hub_of(FakeModel(identity_config())))
    transport.send(infer_bytes([2], extra="Expect: 100-continue\r\n"))
    assert values_in(transport.taken()) == [2]


def test_a_large_body_is_received_in_place() -> None:
    config = identity_config(dims=(40_000,))
    model = FakeModel(config, held=True)
    transport = connect(hub_of(model))
    text = json.dumps(
        {
            "inputs": [
                {"name": "input", "shape": [1, 40_000], "datatype": "FP32", "parameters": {"binary_data_size": 160_000}}
            ]
        }
    ).encode()
    tail = random.Random(0).randbytes(160_000)
    head = f"POST /v2/models/identity/infer HTTP/1.1\r\nInference-Header-Content-Length: {len(text)}\r\n"
    transport.send(head.encode() + b"Content-Length: %d\r\n\r\n" % (len(text) + len(tail)) + text + tail)
    (tensor,) = model.waiting[0].tensors
    assert isinstance(tensor, memoryview)
    assert len(tensor.obj) == len(text) + len(tail)  # type: ignore[arg-type]  # the body's own array
    assert bytes(tensor) == tail


@pytest.mark.parametrize(
    ("sent", "limit_s", "answer"),
    [
        (b"", 75, b""),
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 75, b""),
        (b"GET /v2 HT", 10, b"408 Request Timeout"),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 10\r\n\r\n12", 30, b"408 Request Timeout"),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12", 30, b"408 Request Timeout"),
    ],
)
def test_what_does_not_move_is_closed(sent: bytes, limit_s: float, answer: bytes) -> None:
    hub = hub_of()
    transport = connect(hub)
    transport.send(sent)
    transport.taken()
    hub.group.sweep(1000)
    hub.group.sweep(1000 + limit_s)
    assert transport.is_open
    hub.group.sweep(1000.5 + limit_s)
    assert answer in transport.taken()
    hub.group.sweep(1001 + limit_s)
    hub.group.sweep(1004 + limit_s)
    assert not transport.is_open


def test_a_body_that_grows_is_waited_for_and_a_head_that_trickles_is_not() -> None:
    hub = hub_of()
    body, head = connect(hub), connect(hub)
    body.send(b"POST /v2 HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    for second in range(0, 60, 20):
        body.send(b"x")
        head.send(b"G")
        hub.group.sweep(second)
    assert body.is_open
    assert b"408" not in body.taken()
    assert b"408 Request Timeout" in head.taken()


def test_a_reader_that_takes_nothing_is_closed_and_a_slow_one_is_not() -> None:
    hub = hub_of()
    slow, stuck = connect(hub), connect(hub)
    stuck.unsent_bytes = 1000
    for second in range(0, 80, 20):
        slow.unsent_bytes = 1000 - second
        hub.group.sweep(second)
    assert slow.is_open
    assert stuck.is_aborted


def test_a_request_that_waits_for_its_model_has_all_the_time() -> None:
    model = FakeModel(identity_config(), held=True)
    hub = hub_of(model)
    transport = connect(hub)
    transport.send(infer_bytes([1]))
    for second in range(0, 10_000, 1000):
        hub.group.sweep(second)
    model.finish(model.waiting[0])
    assert values_in(transport.taken()) == [1]


def test_draining_closes_the_idle_at_once_and_the_busy_after_their_answer() -> None:
    model = FakeModel(identity_config(), held=True)
    hub = hub_of(model)
    idle, partial, busy, sending = (connect(hub) for _ in range(4))
    partial.send(b"GET /v2 HT")
    busy.send(infer_bytes([1]) + infer_bytes([2]))
    request = infer_bytes([3])
    sending.send(request[:-10])
    hub.group.drain()
    assert [transport.is_open for transport in (idle, partial, busy, sending)] == [False, False, True, True]
    for _ in range(2):
        model.finish(model.waiting[0])
    first, _, second = busy.taken().partition(b"Connection: close\r\n")
    assert first.count(b"HTTP/1.1 200 OK") == 2
    assert second
    assert busy.has_eof
    sending.send(request[-10:])
    model.finish(model.waiting[0])
    assert sending.taken().startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert not hub.group.empty.is_set()
    hub.group.abort()
    assert hub.group.empty.is_set()
