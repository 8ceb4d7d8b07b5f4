"""System shared memory with tritonclient's own helpers, and what a server without a GPU says of CUDA memory."""

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from client_regions import IMAGE_BYTES, SCORES_BYTES, Requests, images, region
from live_server import SHIPPED, RunningServer, serve

REQUESTS = Requests(triton)
in_memory, plain, to_memory = REQUESTS.in_memory, REQUESTS.plain, REQUESTS.to_memory


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--model", "digits", "--allow-client-shm", repository=SHIPPED) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as connected:
        yield connected
        connected.unregister_system_shared_memory()


def test_inputs_and_outputs(client: triton.InferenceServerClient) -> None:
    values = images(3)
    with region(client, "in", 4096) as given, region(client, "out", 4096) as answers:
        shm.set_shared_memory_region(given, [values], offset=16)
        wanted = to_memory("out", 3, 64)
        for _ in range(3):
            result = client.infer("digits", [in_memory("in", 3, 16)], outputs=[wanted])
            assert result.get_output("scores") == {"name": "scores", "datatype": "FP32", "shape": [3, 10]}
            found = shm.get_contents_as_numpy(answers, np.float32, [3, 10], offset=64)
            assert found == pytest.approx(plain(client, values))
        assert {entry["name"] for entry in client.get_system_shared_memory_status()} == {"in", "out"}
        assert client.get_system_shared_memory_status("in")[0]["byte_size"] == 4096
        from_memory = client.infer("digits", [in_memory("in", 3, 16)]).as_numpy("scores")
        assert from_memory == pytest.approx(plain(client, values))


def test_each_request_gets_its_own_place(server: RunningServer, client: triton.InferenceServerClient) -> None:
    count = 16
    values = images(count)
    with region(client, "in", count * IMAGE_BYTES) as given, region(client, "out", count * SCORES_BYTES) as answers:
        shm.set_shared_memory_region(given, [values])

        def infer(at: int) -> None:
            wanted = to_memory("out", 1, at * SCORES_BYTES)
            with triton.InferenceServerClient(server.address) as own:
                own.infer("digits", [in_memory("in", 1, at * IMAGE_BYTES)], outputs=[wanted])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(infer, range(count)))
        found = shm.get_contents_as_numpy(answers, np.float32, [count, 10])
        assert found == pytest.approx(plain(client, values), abs=1e-5)


def test_what_is_wrong_is_told(client: triton.InferenceServerClient) -> None:
    REQUESTS.check_what_is_wrong_is_told(client)
    assert client.get_system_shared_memory_status() == []


def test_cuda_memory_needs_a_gpu(client: triton.InferenceServerClient) -> None:
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="GPUs not supported"):
        client.register_cuda_shared_memory("x", base64.b64encode(bytes(64)), 0, 16)
    with pytest.raises(InferenceServerException, match="is not base64"):
        client.register_cuda_shared_memory("x", b"handle", 0, 16)


def test_it_is_off_unless_it_is_allowed() -> None:
    with (
        serve("--model", "digits", repository=SHIPPED) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="--allow-client-shm"):
            client.register_system_shared_memory("x", "/x", 16)


def test_the_asyncio_client(server: RunningServer, client: triton.InferenceServerClient) -> None:
    values = images(2)

    async def infer() -> object:
        async with aio.InferenceServerClient(server.address) as own:
            assert [entry["name"] for entry in await own.get_system_shared_memory_status()] == ["in"]
            return (await own.infer("digits", [in_memory("in", 2)])).as_numpy("scores")

    with region(client, "in", 4096) as given:
        shm.set_shared_memory_region(given, [values])
        assert asyncio.run(infer()) == pytest.approx(plain(client, values))
