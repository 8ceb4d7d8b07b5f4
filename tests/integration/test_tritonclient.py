"""tritonclient.http works against the server unchanged."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as grpcclient
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from live_server import MODELS, SHIPPED, RunningServer, serve


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--model", "digits", repository=SHIPPED) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as connected:
        yield connected


def image(rows: int, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("input", [rows, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.random.default_rng(0).random((rows, 1, 8, 8), np.float32), binary_data=binary)
    return tensor


def test_control_calls(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "efserve"
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert client.get_model_config("digits")["max_batch_size"] >= 1
    assert client.get_model_repository_index()[0]["name"] == "digits"
    assert client.get_inference_statistics("digits")["model_stats"][0]["name"] == "digits"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    wanted = [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    result = client.infer("digits", [image(3, binary_in)], outputs=wanted, request_id="abc")
    assert result.get_response()["id"] == "abc"
    scores = result.as_numpy("scores")
    assert scores.shape == (3, 10)
    assert scores.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("sequence", [5, "five"])
def test_a_model_that_batches_no_sequences_answers_those_who_send_some(
    server: RunningServer, client: triton.InferenceServerClient, sequence: int | str
) -> None:
    plain = client.infer("digits", [image(2)]).as_numpy("scores")
    result = client.infer("digits", [image(2)], sequence_id=sequence, sequence_start=True, sequence_end=True)
    assert np.array_equal(result.as_numpy("scores"), plain)
    tensor = grpcclient.InferInput("input", [2, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.random.default_rng(0).random((2, 1, 8, 8), np.float32))
    with grpcclient.InferenceServerClient(server.grpc) as over_grpc:
        result = over_grpc.infer("digits", [tensor], sequence_id=sequence, sequence_start=True, sequence_end=True)
    assert np.array_equal(result.as_numpy("scores"), plain)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, algorithm: str) -> None:
    plain = client.infer("digits", [image(2)]).as_numpy("scores")
    compressed = client.infer(
        "digits", [image(2)], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert compressed.as_numpy("scores") == pytest.approx(plain)


def test_classification_with_labels(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("scores", class_count=2)]
    classes = client.infer("digits", [image(1)], outputs=wanted).as_numpy("scores")
    assert classes.shape == (1, 2)
    value, index, label = classes[0][0].decode().split(":")
    assert 0 < float(value) <= 1
    assert label == (Path(SHIPPED) / "digits" / "labels.txt").read_text().splitlines()[int(index)]


def test_async_infer(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer("digits", [image(1)]) for _ in range(20)]
    assert all(p.get_result().as_numpy("scores").shape == (1, 10) for p in pending)


def test_errors_are_exceptions_with_the_server_s_words(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
        client.infer("nope", [image(1)])
    with pytest.raises(InferenceServerException, match="batch-size must be <="):
        client.infer("digits", [image(1000)])


def test_strings() -> None:
    with serve("--model", "echo", repository=MODELS) as server:
        metadata = server.get("/v2/models/echo")[1]
        words = np.array([["a", "", "löwe"]], np.object_)
        with triton.InferenceServerClient(server.address) as client:
            inputs = []
            for spec in metadata["inputs"]:
                tensor = triton.InferInput(spec["name"], [1, 3], spec["datatype"])
                strings = spec["datatype"] == "BYTES"
                tensor.set_data_from_numpy(words if strings else np.ones((1, 3), triton_dtype(spec["datatype"])))
                inputs.append(tensor)
            result = client.infer("echo", inputs)
            names = [spec["name"] for spec in metadata["outputs"] if spec["datatype"] == "BYTES"]
            assert names
            for name in names:
                assert [w.decode() for w in result.as_numpy(name).ravel()] == ["a", "", "löwe"]


def triton_dtype(datatype: str) -> type[np.generic]:
    """numpy's type of a v2 datatype, by the client's own table."""
    from tritonclient.utils import triton_to_np_dtype

    found: type[np.generic] = triton_to_np_dtype(datatype)
    return found


def test_trace_settings(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with (
        serve("--model", "digits", "--trace-file", str(trace), repository=SHIPPED) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        client.infer("digits", [image(1)])
        assert not trace.exists()
        changed = client.update_trace_settings("digits", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
        assert changed["trace_rate"] == "1"
        client.infer("digits", [image(1)])
        with pytest.raises(InferenceServerException, match="Request for unknown model : nope"):
            client.get_trace_settings("nope")
        assert server.stop() == 0
    (line,) = trace.read_text().splitlines()
    told = json.loads(line)
    stamps = [stamp["ns"] for stamp in told["timestamps"]]
    assert stamps == sorted(stamps)
    names = [stamp["name"] for stamp in told["timestamps"]]
    assert (names[:2], names[-2:]) == (["HTTP_RECV_START", "HTTP_RECV_END"], ["HTTP_SEND_START", "HTTP_SEND_END"])
    assert told["model_version"] == 1


def test_a_trace_tells_how_long_a_request_took_to_arrive(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    on = ("--trace-config", "level=TIMESTAMPS", "--trace-config", "rate=1", "--trace-file", trace)
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]})
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with serve("--model", "digits", *on, repository=SHIPPED) as server:
        host, port = server.address.split(":")
        with (
            triton.InferenceServerClient(server.address) as client,
            socket.create_connection((host, int(port)), timeout=20) as connection,
        ):
            connection.sendall((head + body[:50]).encode())
            assert client.is_server_live()  # the first part has been read by now
            connection.sendall(body[50:].encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            client.infer("digits", [image(1)])
        assert server.stop() == 0
    parts, whole = (
        {stamp["name"]: stamp["ns"] for stamp in json.loads(line)["timestamps"]}
        for line in trace.read_text().splitlines()
    )
    assert parts["HTTP_RECV_START"] < parts["HTTP_RECV_END"]
    assert whole["HTTP_RECV_START"] == whole["HTTP_RECV_END"]


def test_what_is_logged_at_first_is_what_triton_logs() -> None:
    as_triton = {"log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_format": "default"}
    for option, verbose in ((), 0), (("--verbose",), 1):
        with (
            serve("--model", "digits", *option, repository=SHIPPED) as server,
            triton.InferenceServerClient(server.address) as client,
        ):
            assert client.get_log_settings() == {**as_triton, "log_verbose_level": verbose}
            client.update_log_settings({"log_verbose_level": 1})
            client.get_model_metadata("digits")
            assert server.says("DEBUG HTTP request: GET /v2/models/digits")
            assert any("GET /v2/logging" in line for line in server.printed) == bool(verbose)


def test_log_settings(client: triton.InferenceServerClient) -> None:
    assert client.get_log_settings()["log_format"] == "default"
    assert client.update_log_settings({"log_info": True, "log_format": "ISO8601"})["log_info"] is True
    with pytest.raises(InferenceServerException, match="log file location can not be updated"):
        client.update_log_settings({"log_file": "elsewhere.log"})
