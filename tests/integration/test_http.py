"""The v2 port on real sockets: NVIDIA's client, large bodies, clients that misbehave, an orderly end."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import uvloop
from tritonclient.utils import InferenceServerException

from efserve.frontend.http1 import open_http
from efserve.frontend.port import Port
from efserve.model_config import ModelConfig
from efserve.tensors import NUMPY_DTYPES, TensorSpec
from fakes import FakeModel, FakeService, identity_config

MAX_BYTES = 80 << 20


@dataclass
class Served:
    """A server in a loop and thread of its own."""

    port: int
    server: Port
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """As NVIDIA's clients want it."""
        return f"127.0.0.1:{self.port}"

    def call(self, function: Callable[[], Any]) -> Any:
        """The function's value, called in the server's thread."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def drain(self, deadline_s: float) -> None:
        """Stop accepting and drain."""
        self.call(self.server.stop_accepting)
        asyncio.run_coroutine_threadsafe(self.server.drain(deadline_s), self.loop).result(10)


@contextlib.contextmanager
def serving(
    *models: FakeModel, new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
) -> Iterator[Served]:
    """A server on a free port."""
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = open_http(FakeService(*models), max_request_bytes=MAX_BYTES)
    port = asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(10)
    served = Served(port, server, loop)
    try:
        yield served
    finally:
        served.call(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def client_of(served: Served, concurrency: int = 1) -> Iterator[triton.InferenceServerClient]:
    """NVIDIA's HTTP client."""
    client = triton.InferenceServerClient(served.url, concurrency=concurrency, network_timeout=30)
    try:
        yield client
    finally:
        client.close()


def tensor(array: Any, datatype: str, *, binary: bool, name: str = "input") -> triton.InferInput:
    """An input of NVIDIA's client."""
    item = triton.InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=binary)
    return item


def example(datatype: str) -> Any:
    """An array [2,3] of the datatype."""
    if datatype == "BYTES":
        return np.array([[b"a", "\u00e9".encode(), b""], [b"\x01", b"1", b"z" * 300]], np.object_)
    return np.arange(6).reshape(2, 3).astype(NUMPY_DTYPES[datatype])


CASES = [(name, binary) for name in sorted(set(NUMPY_DTYPES) - {"BF16"}) for binary in (True, False)]


@pytest.mark.parametrize(("datatype", "binary"), [case for case in CASES if case != ("FP16", False)])
def test_tritonclient_infers_every_datatype(datatype: str, binary: bool) -> None:
    with serving(FakeModel(identity_config(datatype=datatype, dims=(3,)))) as served, client_of(served) as client:
        array = example(datatype)
        wanted = triton.InferRequestedOutput("output", binary_data=binary)
        result = client.infer("identity", [tensor(array, datatype, binary=binary)], outputs=[wanted], request_id="r-1")
        got = result.as_numpy("output")
        if datatype == "BYTES" and not binary:
            array = np.array([[text.decode() for text in row] for row in array], np.object_)
        assert np.array_equal(got, array)
        assert result.get_response()["id"] == "r-1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses(algorithm: str) -> None:
    with serving(FakeModel(identity_config())) as served, client_of(served) as client:
        array = np.ones((4, 16), np.float32)
        result = client.infer(
            "identity",
            [tensor(array, "FP32", binary=True)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(result.as_numpy("output"), array)


def test_tritonclient_asks_about_everything() -> None:
    with serving(FakeModel(identity_config())) as served, client_of(served) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("identity")
        assert client.get_server_metadata()["name"] == "efserve"
        assert client.get_model_metadata("identity")["versions"] == ["1"]
        assert client.get_model_config("identity")["max_batch_size"] == 8
        assert client.get_model_repository_index() == [{"name": "identity", "version": "1", "state": "READY"}]
        client.infer("identity", [tensor(np.ones((1, 16), np.float32), "FP32", binary=True)])
        assert client.get_inference_statistics("identity")["model_stats"][0]["inference_count"] == 1
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="Client shared memory is disabled"):
            client.unregister_system_shared_memory()
        with pytest.raises(InferenceServerException, match="Client shared memory is disabled"):
            client.unregister_cuda_shared_memory()
        with pytest.raises(InferenceServerException, match="unknown model: 'none' is not found"):
            client.get_model_metadata("none")
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.load_model("identity")


def test_several_inputs_outputs_and_classes() -> None:
    specs = (TensorSpec("A", "INT32", (3,)), TensorSpec("B", "FP32", (3,)))
    config = ModelConfig("pair", max_batch_size=2, inputs=specs, outputs=specs)
    with serving(FakeModel(config, labels={"B": ("x", "y", "z")})) as served, client_of(served) as client:
        first, second = np.array([[1, 2, 3]], np.int32), np.array([[0.25, 0.5, 0.125]], np.float32)
        inputs = [tensor(second, "FP32", binary=True, name="B"), tensor(first, "INT32", binary=False, name="A")]
        for _ in range(2):
            result = client.infer("pair", inputs)
            assert np.array_equal(result.as_numpy("A"), first)
            assert np.array_equal(result.as_numpy("B"), second)
        inputs[1] = tensor(first, "INT32", binary=True, name="A")
        classes = triton.InferRequestedOutput("B", binary_data=True, class_count=2)
        for _ in range(2):
            result = client.infer("pair", inputs, outputs=[classes, triton.InferRequestedOutput("A")])
            assert result.as_numpy("B").tolist() == [[b"0.500000:1:y", b"0.250000:0:x"]]
            assert np.array_equal(result.as_numpy("A"), first)


def test_many_requests_at_once() -> None:
    with serving(FakeModel(identity_config())) as served, client_of(served, 8) as client:
        arrays = [np.full((1, 16), number, np.float32) for number in range(200)]
        pending = [client.async_infer("identity", [tensor(array, "FP32", binary=True)]) for array in arrays]
        for array, result in zip(arrays, pending, strict=True):
            assert np.array_equal(result.get_result().as_numpy("output"), array)


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_64_megabytes_there_and_back(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with serving(FakeModel(identity_config(dims=(-1,))), new_loop=new_loop) as served, client_of(served) as client:
        array = np.random.default_rng(0).random((1, 16 << 20), np.float32)
        result = client.infer("identity", [tensor(array, "FP32", binary=True)])
        assert np.array_equal(result.as_numpy("output"), array)


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def infer_bytes(*headers: str) -> bytes:
    """One small request."""
    item = {"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}
    body = json.dumps({"inputs": [item]}).encode()
    lines = ["POST /v2/models/identity/infer HTTP/1.1", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_client_that_sends_too_much_sees_why() -> None:
    with serving() as served, socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"POST /v2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1))
        client.sendall(bytes(4 << 20))  # nobody wants it, and it must not destroy the answer
        answer = receive_all(client)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")
        assert b"Use --http-max-input-size to increase the limit." in answer


def test_a_client_that_does_not_read_is_held_and_served_later() -> None:
    model = FakeModel(identity_config(dims=(-1,)))
    count, size = 24, 1 << 18
    item = {"name": "input", "shape": [1, size], "datatype": "FP32", "parameters": {"binary_data_size": 4 * size}}
    text = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    head = f"POST /v2/models/identity/infer HTTP/1.1\r\nInference-Header-Content-Length: {len(text)}\r\n".encode()
    one = head + b"Content-Length: %d\r\n\r\n" % (len(text) + 4 * size) + text + bytes(4 * size)
    with (
        serving(model) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(client.sendall, one * (count - 1) + one.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answers = receive_all(client)
        sent.result(30)
        assert answers.count(b"HTTP/1.1 200 OK") == count
        assert len(answers) > count * 4 * size


def test_a_gone_client_cancels_its_request() -> None:
    model = FakeModel(identity_config(), held=True)
    with serving(model) as served, socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(infer_bytes() + b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        while not served.call(lambda: model.waiting):
            pass
        client.close()
        while served.call(lambda: served.server.connections):
            pass
        assert model.waiting[0].cancelled


def test_five_hundred_connections() -> None:
    with serving(FakeModel(identity_config())) as served, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", served.port)
        clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(500)]
        for client in clients:
            client.sendall(infer_bytes("Connection: close"))
        for client in clients:
            assert receive_all(client).startswith(b"HTTP/1.1 200 OK")


def test_draining_finishes_what_is_in_flight() -> None:
    model = FakeModel(identity_config(), held=True)
    with serving(model) as served, ThreadPoolExecutor(1) as pool:
        address = ("127.0.0.1", served.port)
        busy, idle = (socket.create_connection(address, timeout=10) for _ in range(2))
        with busy, idle:
            busy.sendall(infer_bytes())
            while served.call(lambda: (served.server.connections, served.server.in_flight)) != (2, 1):
                pass
            drained = pool.submit(served.drain, 10)
            assert receive_all(idle) == b""
            served.call(lambda: model.finish(model.waiting[0]))
            answer = receive_all(busy)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
            busy.close()
            drained.result(10)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=1)
            assert served.server.connections == 0


def test_draining_ends_at_its_deadline() -> None:
    with serving(FakeModel(identity_config(), held=True)) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(infer_bytes())
            while not served.call(lambda: served.server.in_flight):
                pass
            served.drain(0.05)
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(client) == b""
        assert served.call(lambda: served.server.connections) == 0
