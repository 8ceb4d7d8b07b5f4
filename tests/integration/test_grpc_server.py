"""What a whole server offers over gRPC beside inference, with Triton's own client: models, settings, shared memory."""

import asyncio
import base64
import json
import os
import queue
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm

from client_regions import IMAGE_BYTES, SCORES_BYTES, Requests, images, region
from efserve.codec.grpc import framed
from grpc_load import calls_on_one_connection, connections
from live_server import MODELS, SHIPPED, RunningServer, serve

REQUESTS = Requests(triton)
in_memory, plain, to_memory = REQUESTS.in_memory, REQUESTS.plain, REQUESTS.to_memory

CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "input" data_type: TYPE_FP32 dims: 1 }
output { name: "output" data_type: TYPE_FP32 dims: 1 }
dynamic_batching { priority_levels: 2 default_priority_level: 2 }
"""
# Numbers its rows in the order in which they run.
COUNTS = """
import numpy as np
class Model:
    def __init__(self, config, folder):
        self.count = {start}
    def infer(self, inputs):
        self.count += 1
        return {{"output": np.full((1, 1), self.count - 1, np.float32)}}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, `m`."""
    folder = tmp_path / "repository" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(COUNTS.format(start=0))
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    return tmp_path / "repository"


@pytest.mark.parametrize(("load", "count"), [(calls_on_one_connection, 6000), (connections, 1500)])
def test_memory_is_flat(load: Callable[[str, bytes, int], Coroutine[Any, Any, None]], count: int) -> None:
    """The second half of the calls costs no memory: a kilobyte for each would be 3 or 0.75 MB."""
    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(IMAGE_BYTES)])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 8, 8])
    message = b"".join(framed([request.SerializeToString()]))
    with serve("--model", "digits", repository=SHIPPED) as server:
        gateway = psutil.Process(server.process.pid)
        run = partial(load, f"grpc://{server.grpc}", message)
        asyncio.run(run(count // 2))
        before = gateway.memory_info().rss
        asyncio.run(run(count // 2))
        assert gateway.memory_info().rss - before < 700_000


def place_of(client: triton.InferenceServerClient, name: str = "m", **options: Any) -> int:
    """When the request ran, among all."""
    tensor = triton.InferInput("input", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    return int(client.infer(name, [tensor], **options).as_numpy("output")[0, 0])


@contextmanager
def connected(*options: str | Path, repository: Path) -> Iterator[tuple[RunningServer, triton.InferenceServerClient]]:
    with serve(*options, repository=repository) as server, triton.InferenceServerClient(server.grpc) as client:
        yield server, client


def test_models_are_loaded_and_unloaded(repository: Path) -> None:
    with connected("--model-control-mode", "explicit", repository=repository) as (server, client):
        (entry,) = client.get_model_repository_index().models
        assert (entry.name, entry.state) == ("m", "")
        client.load_model("m")
        assert client.is_model_ready("m")
        assert place_of(client) == 0
        config = client.get_model_config("m", as_json=True)["config"]
        files = {"file:1/model.py": COUNTS.format(start=7).encode()}
        client.load_model("m", config=json.dumps(config), files=files)
        assert place_of(client) == 7
        client.unload_model("m")
        assert not client.is_model_ready("m")
        (entry,) = client.get_model_repository_index().models
        assert (entry.name, entry.version, entry.state, entry.reason) == ("m", "1", "UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll") as caught:
            client.load_model("nope")
        assert caught.value.status() == "StatusCode.INTERNAL"
        with pytest.raises(InferenceServerException, match="Unrecognized load parameter") as caught:
            client.load_model("m", files={"other": base64.b64decode("AAAA")})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert server.stop() == 0


def test_a_load_goes_on_without_its_client_and_ends_with_the_server(repository: Path, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    os.mkfifo(started)
    os.mkfifo(go)
    waits = f"open({str(started)!r}, 'w').close(); open({str(go)!r}).close()\n"
    (repository / "m" / "1" / "model.py").write_text(waits + COUNTS.format(start=0))
    with (
        connected("--model-control-mode", "explicit", repository=repository) as (server, client),
        ThreadPoolExecutor(1) as pool,
    ):
        abandoned = pool.submit(client.load_model, "m", client_timeout=0.5)
        started.open().close()
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
            abandoned.result()
        go.open("w").close()
        waiting = pool.submit(client.load_model, "m")  # after the first load, which it waits for
        started.open().close()
        assert client.is_model_ready("m")  # by the first load
        assert server.stop() == 0
        with pytest.raises(InferenceServerException):
            waiting.result()


def test_the_token_is_needed_where_there_is_one(repository: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    options = ("--model-control-mode", "explicit", "--admin-token-file", token)
    with connected(*options, repository=repository) as (_, client):
        for headers in (None, {"authorization": "Bearer other"}):
            for ask in (
                partial(client.load_model, "m"),
                partial(client.unload_model, "m"),
                client.get_log_settings,
                partial(client.update_log_settings, {"log_info": True}),
                partial(client.update_trace_settings, None, {"trace_rate": "2"}),
            ):
                with pytest.raises(InferenceServerException, match="Authorization: Bearer") as caught:
                    ask(headers=headers)
                assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert client.get_trace_settings().settings["trace_rate"].value == ["1000"]
        client.load_model("m", headers={"authorization": "Bearer s3cret"})
        assert place_of(client) == 0


def test_trace_and_log_settings(repository: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    with connected("--trace-file", traces, repository=repository) as (server, client):
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1"}
        changed = client.update_trace_settings("m", settings).settings
        assert changed["trace_level"].value == ["TIMESTAMPS"]
        assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]
        place_of(client)
        assert client.get_trace_settings("m").settings["trace_count"].value == ["0"]  # what is left
        client.update_trace_settings("m", {"trace_level": None})
        assert client.get_trace_settings("m").settings["trace_level"].value == ["OFF"]
        with pytest.raises(InferenceServerException, match="Unable to parse 'trace_rate'"):
            client.update_trace_settings("m", {"trace_rate": "often"})
        client.update_log_settings({"log_verbose_level": 1, "log_info": True})
        logs = client.get_log_settings().settings
        assert (logs["log_verbose_level"].uint32_param, logs["log_info"].bool_param) == (1, True)
        assert server.stop() == 0
    told = json.loads(traces.read_text())
    assert told["model_name"] == "m"
    assert {"GRPC_WAITREAD_START", "GRPC_SEND_END"} < {stamp["name"] for stamp in told["timestamps"]}


def test_priorities_decide_who_runs_first(repository: Path) -> None:
    with (
        serve(repository=repository, environment={"TRITONSERVER_DELAY_SCHEDULER": "8"}) as server,
        triton.InferenceServerClient(server.grpc) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        low = [pool.submit(place_of, client, priority=number % 2 * 2) for number in range(5)]
        high = [pool.submit(place_of, client, priority=1) for _ in range(3)]
        assert sorted(future.result() for future in high) == [0, 1, 2]
        assert sorted(future.result() for future in low) == [3, 4, 5, 6, 7]


# Shared memory


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--model", "digits", "--allow-client-shm", repository=SHIPPED) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as given:
        yield given
        given.unregister_system_shared_memory()


def test_inputs_and_outputs(client: triton.InferenceServerClient) -> None:
    values = images(3)
    with region(client, "in", 4096) as given, region(client, "out", 4096) as answers:
        shm.set_shared_memory_region(given, [values], offset=16)
        for number in range(3):
            result = client.infer("digits", [in_memory("in", 3, 16)], outputs=[to_memory("out", 3, 64)])
            scores = result.get_output("scores")
            assert (scores.datatype, list(scores.shape)) == ("FP32", [3, 10])
            assert list(result.get_response().raw_output_contents) == [b""]
            found = shm.get_contents_as_numpy(answers, np.float32, [3, 10], offset=64)
            assert found == pytest.approx(plain(client, values)), number
            shm.set_shared_memory_region(answers, [np.zeros((3, 10), np.float32)], offset=64)
        regions = client.get_system_shared_memory_status().regions
        assert {name: entry.byte_size for name, entry in regions.items()} == {"in": 4096, "out": 4096}
        from_memory = client.infer("digits", [in_memory("in", 3, 16)]).as_numpy("scores")
        assert from_memory == pytest.approx(plain(client, values))


def test_each_request_of_a_stream_gets_its_own_place(client: triton.InferenceServerClient) -> None:
    count = 16
    values = images(count)
    answered: queue.Queue[Any] = queue.Queue()
    with region(client, "in", count * IMAGE_BYTES) as given, region(client, "out", count * SCORES_BYTES) as answers:
        shm.set_shared_memory_region(given, [values])
        client.start_stream(lambda result, error: answered.put(error))
        for at in range(count):
            wanted = to_memory("out", 1, at * SCORES_BYTES)
            client.async_stream_infer("digits", [in_memory("in", 1, at * IMAGE_BYTES)], outputs=[wanted])
        assert [answered.get(timeout=20) for _ in range(count)] == [None] * count
        client.async_stream_infer("digits", [in_memory("in", 1, count * IMAGE_BYTES)])
        assert "Invalid offset" in str(answered.get(timeout=20))
        client.stop_stream()
        found = shm.get_contents_as_numpy(answers, np.float32, [count, 10])
        assert found == pytest.approx(plain(client, values), abs=1e-5)


def test_some_inputs_in_memory_and_some_not() -> None:
    words = np.array([["one", "two", "three"]], np.object_)
    data = serialize_byte_tensor(words)
    with connected("--model", "echo", "--allow-client-shm", repository=MODELS) as (_, client):
        count, text, number = (
            triton.InferInput(name, [1, 3], datatype)
            for name, datatype in (("count", "INT64"), ("text", "BYTES"), ("number", "FP32"))
        )
        count.set_data_from_numpy(np.arange(3).reshape(1, 3))
        number.set_data_from_numpy(np.ones((1, 3), np.float32))
        text.set_shared_memory("words", len(data.item()))
        wanted = [triton.InferRequestedOutput(name) for name in ("number_out", "text_out", "count_out")]
        wanted[0].set_shared_memory("words", 12, 1024)
        with region(client, "words", 4096) as memory:
            shm.set_shared_memory_region(memory, [data])
            for _ in range(2):
                result = client.infer("echo", [count, text, number], outputs=wanted)
                assert [word.decode() for word in result.as_numpy("text_out").ravel()] == ["one", "two", "three"]
                assert result.as_numpy("count_out").tolist() == [[0, 1, 2]]
                found = shm.get_contents_as_numpy(memory, np.float32, [1, 3], offset=1024)
                assert found.tolist() == [[1, 1, 1]]
            text.set_shared_memory("words", len(data.item()) - 1)
            with pytest.raises(InferenceServerException, match="inference input 'text' for model 'echo'"):
                client.infer("echo", [count, text, number])


def test_what_is_wrong_is_told(client: triton.InferenceServerClient) -> None:
    REQUESTS.check_what_is_wrong_is_told(client)
    assert not client.get_system_shared_memory_status().regions


def test_cuda_memory_needs_a_gpu(client: triton.InferenceServerClient) -> None:
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="GPUs not supported"):
        client.register_cuda_shared_memory("x", base64.b64encode(b"handle"), 0, 16)


def test_it_is_off_unless_it_is_allowed() -> None:
    with connected("--model", "digits", repository=SHIPPED) as (_, client):
        assert not client.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException, match="--allow-client-shm") as caught:
            client.register_system_shared_memory("x", "/x", 16)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
