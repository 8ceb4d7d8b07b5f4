"""Our gRPC client, on our gRPC port and on servers that are none."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from efserve.client.connection import CLOSED, CONNECT, GARBLED, Connection
from efserve.client.endpoint import GrpcEndpoint
from efserve.client.grpc import GrpcConnection
from efserve.client.v2 import ModelInfo
from efserve.client.v2_grpc import V2GrpcClient, infer_outputs, infer_request, payload_bytes
from efserve.codec.grpc import framed
from efserve.errors import InferenceFailed, RemoteError, UsageError
from efserve.frontend.grpc import open_grpc
from efserve.tensors import TensorSpec
from fakes import FakeModel, FakeService, identity_config

SPEC = TensorSpec("input", "FP32", (-1, 16))


def info(name: str, *inputs: TensorSpec) -> ModelInfo:
    """A model of one FP32 input and one output, or of these inputs."""
    return ModelInfo(name, "", "", inputs or (SPEC,), (TensorSpec("output", "FP32", (-1, -1)),), 8)


ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """The URL of a server in this loop."""
    fails = FakeModel(identity_config("fails"), lambda request: InferenceFailed("it broke"))
    held = FakeModel(identity_config("held"), held=True)
    wide = FakeModel(identity_config("wide", dims=(-1,)))
    port = open_grpc(FakeService(FakeModel(identity_config()), fails, held, wide), max_request_bytes=1 << 26)
    try:
        yield f"grpc://127.0.0.1:{await port.start('127.0.0.1', 0)}"
    finally:
        port.close()


def run(test: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with serving() as url:
            await test(url)

    asyncio.run(main())


def test_calls() -> None:
    async def test(url: str) -> None:
        client = V2GrpcClient(url)
        found = await client.call("ModelMetadata", pb.ModelMetadataRequest(name="identity"))
        assert found.inputs[0].name == "input"
        answer = await client.infer(info("identity"), [ROW])
        assert np.array_equal(answer.outputs["output"], ROW)
        assert answer.payload_bytes == 64
        assert (await client.classify(info("identity"), [ROW], "output", 1)).tolist() == [[b"15.000000:15"]]
        with pytest.raises(RemoteError, match="'nobody' is not found"):
            await client.infer(info("nobody"), [ROW])

    run(test)


def test_a_large_tensor() -> None:
    async def test(url: str) -> None:
        values = np.arange(2_000_000, dtype=np.float32).reshape(1, -1)
        answer = await V2GrpcClient(url).infer(info("wide", TensorSpec("input", "FP32", (-1, -1))), [values])
        assert np.array_equal(answer.outputs["output"], values)

    run(test)


def test_a_stream() -> None:
    async def test(url: str) -> None:
        requests = [infer_request(info("identity"), [ROW + n]) for n in range(50)]
        requests.insert(10, infer_request(info("nobody"), [ROW]))
        answers: list[Any] = []
        await V2GrpcClient(url).stream(requests, answers.append)
        assert len(answers) == 51
        assert [a.error_message for a in answers if a.error_message] == [
            "Request for unknown model: 'nobody' is not found"
        ]
        firsts = [infer_outputs(a.infer_response)["output"][0, 0] for a in answers if not a.error_message]
        assert firsts == list(range(50))

    run(test)


def test_a_deadline() -> None:
    async def test(url: str) -> None:
        with pytest.raises(RemoteError, match=r"no answer to ModelInfer within 0\.1 s"):
            await V2GrpcClient(url, deadline_s=0.1).infer(info("held"), [ROW])

    run(test)


@pytest.mark.parametrize("url", ["http://a:1", "grpc://", "grpc://a:1/path", "grpc://a:x", "a:1", "grpc://u@a:1"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(UsageError, match="expected grpc://HOST:PORT"):
        GrpcEndpoint(url)


async def answering(data: bytes) -> tuple[asyncio.Server, str]:
    """A server that sends these bytes to whoever comes, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak HTTP/2"), (b"", "closed the connection|broke")],
)
def test_a_server_that_is_none(data: bytes, text: str) -> None:
    async def main() -> None:
        server, url = await answering(data)
        async with server:
            with pytest.raises(RemoteError, match=text):
                await V2GrpcClient(url).call("ServerLive", pb.ServerLiveRequest())
        with pytest.raises(RemoteError, match="cannot reach a server"):
            await V2GrpcClient(url).call("ServerLive", pb.ServerLiveRequest())

    asyncio.run(main())


# For load


class Recorder:
    """Keeps what a connection tells, and sends the next request at once."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = requests
        self.told: list[tuple[Any, ...]] = []
        self.done = asyncio.get_running_loop().create_future()

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        self.told.append((status, payload_bytes))
        self._next(connection)

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        self.told.append((kind,))
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        if self.requests:
            connection.send(self.requests.pop())
        else:
            self.done.set_result(None)


def prepared(model: str) -> bytes:
    return b"".join(framed([infer_request(info(model), [ROW]).SerializeToString()]))


def test_a_connection_for_load() -> None:
    async def test(url: str) -> None:
        requests = [prepared("identity"), prepared("nobody"), prepared("identity")]
        recorder = Recorder(requests)
        connection = GrpcConnection(GrpcEndpoint(url), recorder, payload_bytes)
        connection.send(requests.pop())
        await recorder.done
        assert recorder.told == [(200, 64), (5, -1), (200, 64)]
        connection.close()

    run(test)


def test_failures_of_a_connection_for_load() -> None:
    async def main() -> None:
        for data, kind in ((b"nonsense, long enough for a frame", GARBLED), (b"", CLOSED)):
            server, url = await answering(data)
            async with server:
                recorder = Recorder([])
                connection = GrpcConnection(GrpcEndpoint(url), recorder, payload_bytes)
                connection.send(prepared("identity"))
                await recorder.done
                assert recorder.told[0][0] in (kind, "reset")
        recorder = Recorder([])
        connection = GrpcConnection(GrpcEndpoint(url), recorder, payload_bytes)
        connection.send(prepared("identity"))
        await recorder.done
        assert recorder.told == [(CONNECT,)]

    asyncio.run(main())
