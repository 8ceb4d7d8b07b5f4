"""The gRPC port with other people's clients: grpcio with generated stubs, tritonclient, and h2load."""

import asyncio
import contextlib
import queue
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from efserve.codec.http2 import frames as h2
from efserve.codec.http2.headers import encode_headers
from efserve.errors import InferenceFailed
from efserve.frontend.grpc import open_grpc
from efserve.frontend.http2 import Http2Connection
from efserve.frontend.port import Port
from fakes import FakeModel, FakeService, identity_config

MAX_BYTES = 70 << 20
WAIT_S = 20
Array = np.ndarray[Any, Any]


@dataclass
class Served:
    """A server in a loop and thread of its own."""

    number: int
    port: Port
    service: FakeService
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.number}"

    def call(self, function: Callable[[], Any]) -> Any:
        """The function's value, called in the server's thread."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until a condition holds in the server's thread, which is asked in each turn of its loop."""

        async def until() -> None:
            async with asyncio.timeout(WAIT_S):
                while not condition():  # noqa: ASYNC110  # conditions of all kinds, which set no event
                    await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(until(), self.loop).result(WAIT_S)


@contextlib.contextmanager
def serving(*models: FakeModel) -> Iterator[Served]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = FakeService(*models)
    port = open_grpc(service, max_request_bytes=MAX_BYTES)
    number = asyncio.run_coroutine_threadsafe(port.start("127.0.0.1", 0), loop).result(WAIT_S)
    served = Served(number, port, service, loop)
    try:
        yield served
    finally:
        served.call(port.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def held() -> FakeModel:
    """A model that answers when the test says so."""
    return FakeModel(identity_config("held"), held=True)


@pytest.fixture
def served(held: FakeModel) -> Iterator[Served]:
    fails = FakeModel(identity_config("fails"), lambda request: InferenceFailed("it broke: 100 % ünclean"))
    wide = FakeModel(identity_config("wide", dims=(-1,)))
    text = FakeModel(identity_config("text", datatype="BYTES", dims=(1,)))
    with serving(FakeModel(identity_config()), wide, text, held, fails) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as connected:
        yield connected


@pytest.fixture
def stub(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(served.url, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(values: Array, datatype: str = "FP32") -> list[triton.InferInput]:
    given = triton.InferInput("input", list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return [given]


def message(name: str = "identity", **fields: Any) -> Any:
    asked = pb.ModelInferRequest(model_name=name, raw_input_contents=[bytes(64)], **fields)
    asked.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    return asked


ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


# tritonclient


def test_every_small_method(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "efserve"
    assert list(client.get_model_metadata("identity").inputs[0].shape) == [-1, 16]
    assert client.get_model_config("identity").config.max_batch_size == 8
    client.infer("identity", tensor(ROW))
    (counts,) = client.get_inference_statistics("identity").model_stats
    assert (counts.inference_count, counts.inference_stats.success.count) == (1, 1)
    assert len(client.get_inference_statistics().model_stats) == 5
    assert {entry.name for entry in client.get_model_repository_index().models} >= {"identity", "held"}
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions


@pytest.mark.parametrize(
    ("ask", "status", "text"),
    [
        (lambda c: c.get_model_metadata("nobody"), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        (lambda c: c.load_model("identity"), "UNAVAILABLE", "explicit model load / unload is not allowed"),
        (lambda c: c.unload_model("identity"), "UNAVAILABLE", "explicit model load / unload is not allowed"),
        (lambda c: c.register_system_shared_memory("r", "/k", 8), "UNIMPLEMENTED", "--allow-client-shm"),
        (lambda c: c.get_system_shared_memory_status("r"), "NOT_FOUND", "shared memory region: 'r'"),
        (lambda c: c.get_trace_settings(), "UNIMPLEMENTED", "trace settings are not offered"),
        (lambda c: c.update_log_settings({"log_info": True}), "UNIMPLEMENTED", "log settings are not offered"),
        (lambda c: c.infer("nobody", tensor(ROW)), "NOT_FOUND", "'nobody' is not found"),
        (lambda c: c.infer("identity", tensor(ROW[:, :15])), "INVALID_ARGUMENT", "got [1,15]"),
        (lambda c: c.infer("fails", tensor(ROW)), "INTERNAL", "it broke: 100 % ünclean"),
    ],
)
def test_errors(client: triton.InferenceServerClient, ask: Callable[[Any], Any], status: str, text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask(client)
    assert caught.value.status() == f"StatusCode.{status}"
    assert text in caught.value.message()


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("columns", [1, 1000, 150_000, 2_000_000])
def test_tensors_of_all_sizes(client: triton.InferenceServerClient, columns: int, algorithm: str | None) -> None:
    values = np.arange(columns, dtype=np.float32).reshape(1, columns)
    answer = client.infer("wide", tensor(values), request_id="7", compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("output"), values)
    assert answer.get_response().id == "7"


def test_64_mb(client: triton.InferenceServerClient) -> None:
    values = np.ones((1, 16 * 2**20), np.float32)
    assert np.array_equal(client.infer("wide", tensor(values)).as_numpy("output"), values)


def test_too_large(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="larger than the limit") as caught:
        client.infer("wide", tensor(np.ones((1, 18 * 2**20), np.float32)))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.is_server_live()


def test_strings_and_classes(client: triton.InferenceServerClient) -> None:
    words = np.array([["héllo".encode()], [b""]], np.object_)
    assert np.array_equal(client.infer("text", tensor(words, "BYTES")).as_numpy("output"), words)
    wanted = [triton.InferRequestedOutput("output", class_count=2)]
    answer = client.infer("identity", tensor(ROW), outputs=wanted).as_numpy("output")
    assert answer.tolist() == [[b"15.000000:15", b"14.000000:14"]]


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def put(result: Any, error: Any) -> None:
        answers.put((result, error))

    for number in range(200):
        client.async_infer("identity", tensor(ROW + number), put, request_id=str(number))
    for _ in range(200):
        result, error = answers.get(timeout=WAIT_S)
        assert error is None
        assert result.as_numpy("output")[0, 0] == float(result.get_response().id)


def test_keep_alive(served: Served) -> None:
    options = triton.KeepAliveOptions(
        keepalive_time_ms=50, keepalive_permit_without_calls=True, http2_max_pings_without_data=0
    )
    with triton.InferenceServerClient(served.url, keepalive_options=options) as client:
        assert client.is_server_live()
        (connection,) = served.port._group.members
        assert isinstance(connection, Http2Connection)
        before = connection._received_bytes
        served.wait(lambda: connection._received_bytes >= before + 3 * 17)  # three pings, without a call
        assert np.array_equal(client.infer("identity", tensor(ROW)).as_numpy("output"), ROW)


def test_asyncio_client(served: Served) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(served.url) as client:
            answers = await asyncio.gather(*[client.infer("identity", tensor(ROW + n)) for n in range(50)])
            assert [answer.as_numpy("output")[0, 0] for answer in answers] == list(range(50))

            async def requests() -> Any:
                for number in range(20):
                    yield {"model_name": "identity", "inputs": tensor(ROW + number), "request_id": str(number)}

            found = [(result, error) async for result, error in client.stream_infer(requests())]
            assert [result.get_response().id for result, _ in found] == [str(number) for number in range(20)]
            assert not any(error for _, error in found)

    asyncio.run(run())


# Streaming


def test_a_stream(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(100):
        client.async_stream_infer("identity", tensor(ROW + number), request_id=str(number))
    client.async_stream_infer("nobody", tensor(ROW), request_id="bad")
    client.async_stream_infer("identity", tensor(ROW), request_id="last", enable_empty_final_response=True)
    got = [answers.get(timeout=WAIT_S) for _ in range(102)]
    client.stop_stream()
    assert [result.get_response().id for result, _ in got[:100]] == [str(number) for number in range(100)]
    assert "'nobody' is not found" in str(got[100][1])
    assert got[101][0].get_response().parameters["triton_final_response"].bool_param


def test_a_stream_answers_as_answers_come(served: Served, held: FakeModel, stub: Any) -> None:
    asked: queue.Queue[Any] = queue.Queue()
    call = stub.ModelStreamInfer(iter(asked.get, None), timeout=WAIT_S)
    for number in range(3):
        asked.put(message("held", id=str(number)))
    served.wait(lambda: len(held.waiting) == 3)
    served.call(lambda: held.finish(held.waiting[2]))
    assert next(call).infer_response.id == "2"
    served.call(lambda: held.finish(held.waiting[0]))
    assert next(call).infer_response.id == "0"
    asked.put(None)
    served.call(lambda: held.finish(held.waiting[0]))
    assert [answer.infer_response.id for answer in call] == ["1"]
    assert call.code() is grpc.StatusCode.OK


def test_a_strict_stream_ends_with_the_status(stub: Any) -> None:
    call = stub.ModelStreamInfer(iter([message("nobody")]), metadata=[("triton_grpc_error", "true")], timeout=WAIT_S)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_compressed_stream(stub: Any) -> None:
    call = stub.ModelStreamInfer(iter([message(), message()]), compression=grpc.Compression.Gzip, timeout=WAIT_S)
    assert [list(answer.infer_response.raw_output_contents) for answer in call] == [[bytes(64)]] * 2


def test_a_client_that_does_not_read_is_held_back(served: Served, held: FakeModel, stub: Any) -> None:
    """Not more requests are taken than fit the window once 256 are in flight."""
    asked: queue.Queue[Any] = queue.Queue()
    call = stub.ModelStreamInfer(iter(asked.get, None), timeout=WAIT_S)
    big = pb.ModelInferRequest(model_name="held", id="x" * 20_000, raw_input_contents=[bytes(64)])
    big.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    for _ in range(600):
        asked.put(big)
    served.wait(lambda: len(held.waiting) >= 256)
    assert served.call(lambda: len(held.waiting)) < 300
    held._held = False

    def finish() -> None:
        for request in list(held.waiting):
            held.finish(request)

    served.call(finish)
    asked.put(None)
    assert sum(1 for _ in call) == 600


# Deadlines and cancellation


def test_a_deadline(held: FakeModel, stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message("held"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_server_keeps_deadlines_itself(served: Served, held: FakeModel) -> None:
    with raw_call(served, [(b"grpc-timeout", b"50m")]) as answers:
        trailers = answers()
    assert b"grpc-status\x014" in trailers
    (waiting,) = held.waiting
    assert waiting.cancelled


@contextlib.contextmanager
def raw_call(served: Served, fields: list[tuple[bytes, bytes]]) -> Iterator[Callable[[], bytes]]:
    """A call of the held model by hand; the function waits for the stream's end and returns all header blocks."""
    head = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        (b"content-type", b"application/grpc"),
        *fields,
    ]
    body = message("held").SerializeToString()
    data = h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.HEADERS, 4, 1, encode_headers(head))
    data += h2.frame(h2.DATA, 1, 1, b"\0" + len(body).to_bytes(4, "big") + body)
    with socket.create_connection(("127.0.0.1", served.number), timeout=WAIT_S) as connection:
        connection.sendall(data)
        stream = connection.makefile("rb")

        def blocks() -> bytes:
            found = b""
            while True:
                head, flags, _ = h2.HEAD.unpack(stream.read(9))
                payload = stream.read(head >> 8)
                if head & 255 == h2.HEADERS:
                    found += payload
                    if flags & h2.END_STREAM:
                        return found

        yield blocks


def test_cancelling_takes_the_request_out(served: Served, held: FakeModel, stub: Any) -> None:
    call = stub.ModelInfer.future(message("held"))
    served.wait(lambda: len(held.waiting) == 1)
    call.cancel()
    served.wait(lambda: held.waiting[0].cancelled)
    served.call(lambda: held.finish(held.waiting[0]))  # its answer goes nowhere
    assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_a_lost_connection_cancels(served: Served, held: FakeModel) -> None:
    with raw_call(served, []):
        served.wait(lambda: len(held.waiting) == 1)
    served.wait(lambda: held.waiting[0].cancelled)
    served.wait(lambda: served.port.connections == 0)


# gRPC's own services and rules


def test_health(served: Served) -> None:
    with grpc.insecure_channel(served.url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        served.service.is_ready = False
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest()).status == 2
        watch.cancel()
        assert next(health.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=WAIT_S)).status == 3


def test_reflection(served: Served) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="grpc/health/v1/health.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such"),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="x"),
    ]
    with grpc.insecure_channel(served.url) as channel:
        listed, infer, health, unknown, extensions = reflection_pb2_grpc.ServerReflectionStub(
            channel
        ).ServerReflectionInfo(iter(asked), timeout=WAIT_S)
        newer = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (listed_again,) = newer(iter(asked[:1]), timeout=WAIT_S)
    assert listed == listed_again
    assert "grpc.health.v1.Health" in [service.name for service in listed.list_services_response.service]
    assert len(infer.file_descriptor_response.file_descriptor_proto) == 2
    assert b"HealthCheckRequest" in health.file_descriptor_response.file_descriptor_proto[0]
    assert unknown.error_response.error_code == extensions.error_response.error_code == 5


def test_unknown_methods_and_bad_messages(served: Served) -> None:
    with grpc.insecure_channel(served.url) as channel:
        for path, body, code in (
            ("/inference.GRPCInferenceService/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
            ("/inference.GRPCInferenceService/ModelInfer", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            ("/inference.GRPCInferenceService/ModelReady", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            method = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError) as caught:
                method(body, timeout=WAIT_S)
            assert caught.value.code() is code
        several = channel.stream_unary("/inference.GRPCInferenceService/ServerLive")
        for messages in ([], [b"", b""]):
            with pytest.raises(grpc.RpcError) as caught:
                several(iter(messages), timeout=WAIT_S)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


# The port's life


def test_draining_finishes_what_runs(served: Served, held: FakeModel, stub: Any) -> None:
    call = stub.ModelInfer.future(message("held"), timeout=WAIT_S)
    served.wait(lambda: len(held.waiting) == 1)
    served.call(served.port.stop_accepting)
    drained = asyncio.run_coroutine_threadsafe(served.port.drain(WAIT_S), served.loop)
    served.call(lambda: held.finish(held.waiting[0]))
    assert list(call.result().raw_output_contents) == [bytes(64)]
    drained.result(WAIT_S)
    served.wait(lambda: served.port.connections == 0)


def test_draining_ends_idle_streams_and_watchers(served: Served, stub: Any) -> None:
    asked: queue.Queue[Any] = queue.Queue()
    stream = stub.ModelStreamInfer(iter(asked.get, None), timeout=WAIT_S)
    asked.put(message())
    next(stream)
    with grpc.insecure_channel(served.url) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        next(watch)
        served.call(served.port.stop_accepting)
        asyncio.run_coroutine_threadsafe(served.port.drain(WAIT_S), served.loop).result(WAIT_S)
        for call in (stream, watch):
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    asked.put(None)


def test_idle_connections_are_small(served: Served) -> None:
    process = psutil.Process()
    hello = h2.PREFACE + h2.settings_frame({})
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", served.number))) for _ in range(50)]
        served.wait(lambda: served.port.connections == 50)
        before = process.memory_info().rss
        sockets += [stack.enter_context(socket.create_connection(("127.0.0.1", served.number))) for _ in range(400)]
        for connection in sockets:
            connection.sendall(hello)
        served.wait(lambda: served.port.connections == 450)
        assert process.memory_info().rss - before < 400 * 20 * 1024
    served.wait(lambda: served.port.connections == 0)


def test_rapid_reset_costs_the_connection(served: Served) -> None:
    head = encode_headers([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b"content-type", b"x")])
    reset = [h2.frame(h2.HEADERS, 4, n, head) + h2.frame(h2.RST_STREAM, 0, n, bytes(4)) for n in range(1, 10_001, 2)]
    with socket.create_connection(("127.0.0.1", served.number), timeout=WAIT_S) as connection:
        connection.sendall(h2.PREFACE + h2.settings_frame({}) + b"".join(reset))
        data = b""
        while part := connection.recv(65_536):
            data += part
    assert data.endswith(b"too many streams are reset")
    served.wait(lambda: served.port.connections == 0)


def test_h2load(served: Served, tmp_path: Path) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed; on Debian: apt-get install nghttp2-client")
    body = message().SerializeToString()
    file = tmp_path / "body"
    file.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    command = ["h2load", "-n", "2000", "-c", "10", "-m", "100", "-H", "content-type: application/grpc", "-d", str(file)]
    url = f"http://{served.url}/inference.GRPCInferenceService/ModelInfer"
    ended = subprocess.run([*command, url], capture_output=True, text=True, timeout=60, check=False)
    assert "2000 succeeded, 0 failed, 0 errored" in ended.stdout, ended.stdout
