"""Control calls and the meaning of v2 messages, against a real small server."""

import asyncio
import json
import socket
from typing import Any

import numpy as np
import pytest
import uvloop

from byte_server import Script, serving
from efserve.client.control import HttpAnswer, HttpClient
from efserve.client.infer import infer_body, read_infer
from efserve.client.v2 import ModelInfo, V2Client, model_path
from efserve.errors import RemoteError
from efserve.tensors import TensorSpec, encode_bytes
from v2_server import Behaviour, running

INPUT = TensorSpec("input", "FP32", (-1, 16))
OUTPUT = TensorSpec("output", "FP32", (-1, 16))


def test_a_server_tells_what_it_is_and_what_it_has() -> None:
    async def main() -> None:
        async with running(Behaviour()) as url:
            client = V2Client(url)
            server = await client.server()
            assert (server.name, server.version, server.binary) == ("test", "1", True)
            assert await client.ready_models() == ["echo"]
            model = await client.model("echo")
            assert model == ModelInfo("echo", "", "test", (INPUT,), (OUTPUT,), 8, model.config)
            assert model.config is not None
            assert model.config["max_batch_size"] == 8
            assert model.batches

    uvloop.run(main())


def test_a_bare_server_is_enough() -> None:
    async def main() -> None:
        behaviour = Behaviour(extensions=(), has_config=False, has_index=False, has_stats=False)
        async with running(behaviour) as url:
            client = V2Client(url)
            assert not (await client.server()).binary
            assert await client.ready_models() is None
            model = await client.model("echo")
            assert model.max_batch_size is None
            assert model.batches  # all first dimensions are free
            assert await client.counters(model) is None

    asyncio.run(main())


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_inference_gives_the_tensors_back(binary: bool, chunked: bool) -> None:
    async def main() -> None:
        async with running(Behaviour(chunked=chunked)) as url:
            client = V2Client(url)
            model = await client.model("echo")
            rows = np.random.default_rng(0).random((3, 16), np.float32)
            answer = await client.infer(model, [rows], binary=binary)
            np.testing.assert_array_equal(answer.outputs["output"], rows)
            assert answer.payload_bytes == (rows.nbytes if binary else -1)
            counters = await client.counters(model)
            assert counters is not None
            assert (counters.requests, counters.inferences, counters.executions) == (1, 3, 1)
            assert counters.compute_infer_ns == 20_000

    uvloop.run(main())


def test_the_servers_own_words_reach_the_caller() -> None:
    async def main() -> None:
        async with running(Behaviour()) as url:
            client = V2Client(url)
            with pytest.raises(RemoteError, match="Request for unknown model: 'nope' is not found") as caught:
                await client.model("nope")
            assert caught.value.status == 404
            model = await client.model("echo")
            with pytest.raises(RemoteError, match="batch-size must be <= 8 for 'echo'"):
                await client.infer(model, [np.zeros((9, 16), np.float32)])

    uvloop.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_a_server_that_is_not_v2_is_told_so(answer: bytes) -> None:
    async def main() -> None:
        async with serving(Script([answer], "close")) as url:
            with pytest.raises(RemoteError, match="no KServe v2 server: GET /v2 answered"):
                await V2Client(url).server()

    uvloop.run(main())


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], "close"), "before its answer was whole"),
        (Script([], "close"), "before its answer was whole"),
        (Script([], "reset"), "GET /v2"),
        (Script([b"what is this\r\n\r\n"]), "not an HTTP answer"),
        (Script([]), "no answer to GET /v2 within 0.2 s"),
    ],
)
def test_no_answer_is_one_error(script: Script, says: str) -> None:
    async def main() -> None:
        async with serving(script) as url:
            with pytest.raises(RemoteError, match=says):
                await HttpClient(url, deadline_s=0.2).get("/v2")

    uvloop.run(main())


def test_an_unreachable_server_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            RemoteError, match=rf"cannot reach a server at http://127\.0\.0\.1:{port}: connection refused"
        ):
            uvloop.run(HttpClient(f"127.0.0.1:{port}").get("/v2"))


def test_a_body_that_ends_with_the_connection_is_read_whole() -> None:
    async def main() -> None:
        async with serving(Script([b"HTTP/1.1 200 OK\r\n\r\n[1,", b"2]"], "close")) as url:
            assert (await HttpClient(url).get("/")).json() == [1, 2]

    uvloop.run(main())


def test_error_texts() -> None:
    assert HttpAnswer(400, "", -1, b'{"error":"why"}').error_text() == "why"
    assert HttpAnswer(502, "", -1, b" <bad gateway> ").error_text() == "<bad gateway>"
    assert HttpAnswer(502, "", -1, b"").error_text() == "HTTP status 502"


def test_paths_are_quoted() -> None:
    assert model_path("a b/c", "1") == "/v2/models/a%20b%2Fc/versions/1"


def answer(outputs: list[dict[str, Any]], tail: bytes | None = None) -> HttpAnswer:
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return HttpAnswer(200, "", -1 if tail is None else len(head), head + (tail or b""))


def binary(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def test_mixed_outputs_are_read() -> None:
    strings = encode_bytes([b"a", b"bc"])
    read = read_infer(
        answer(
            [
                binary("f", "FP16", [2], 4),
                {"name": "j", "datatype": "INT64", "shape": [1, 2], "data": [[1, 2]]},
                binary("s", "BYTES", [2], len(strings)),
            ],
            b"\x00\x3c\x00\x40" + strings,
        ),
        "m",
        [TensorSpec("f", "FP16", (2,)), TensorSpec("j", "INT64", (-1, 2)), TensorSpec("s", "BYTES", (-1,))],
    )
    assert read.outputs["f"].tolist() == [1.0, 2.0]
    assert read.outputs["j"].tolist() == [[1, 2]]
    assert read.outputs["s"].tolist() == [b"a", b"bc"]
    assert read.payload_bytes == 4 + len(strings)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (answer([]), "lacks output 'y'"),
        (answer([binary("y", "FP32", [2], 8)], b"1234567"), "got 7 bytes"),
        (answer([binary("y", "FP32", [2], 7)], b"1234567"), "got 7 bytes"),
        (answer([binary("y", "FP32", [2], 8)], b"123456789"), "1 bytes more"),
        (answer([binary("y", "FP32", [2], -8)], b"12345678"), "not what the v2 protocol says"),
        (answer([binary("y", "FP64", [1], 8)], b"12345678"), "came as FP64"),
        (answer([binary("y", "FP32", [1, 2], 8)], b"12345678"), "came as FP32"),
        (answer([binary("y", "FP99", [2], 8)], b"12345678"), "FP99"),
        (answer([{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]), "1 values for shape"),
        (answer([{"name": "y", "datatype": "FP32", "shape": [2], "data": ["a", "b"]}]), "are not FP32"),
        (answer([{"name": "y", "datatype": "FP32", "shape": [2]}]), "neither 'data' nor"),
        (HttpAnswer(200, "", -1, b"[]"), "not what the v2 protocol says"),
        (HttpAnswer(200, "", 1, b"{}"), "not what the v2 protocol says"),
    ],
)
def test_wrong_answers_are_refused(wrong: HttpAnswer, says: str) -> None:
    with pytest.raises(RemoteError, match=says):
        read_infer(wrong, "m", [TensorSpec("y", "FP32", (2,))])


def test_half_floats_need_binary() -> None:
    spec = TensorSpec("x", "FP16", (1,))
    half = np.zeros(1, np.float16)
    assert infer_body([spec], [half], binary=True).data.endswith(b"\0\0")
    with pytest.raises(RemoteError, match="'x' is FP16"):
        infer_body([spec], [half], binary=False)


def test_strings_travel_as_text_in_json() -> None:
    strings = np.array([b"a", b"\xc3\xa9"], object)
    body = infer_body([TensorSpec("x", "BYTES", (2,))], [strings], binary=False)
    assert body.json_bytes == -1
    assert json.loads(body.data)["inputs"][0]["data"] == ["a", "\u00e9"]
