"""A small v2 server for tests of clients: real sockets, one model of 16 floats that returns its input, told delays.

`python tests/v2_server.py [--delay-us N]` serves by itself and prints its URL.
"""

import argparse
import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository")
MODEL = "echo"
MAX_BATCH = 8


@dataclass
class Behaviour:
    """How the server answers; tests set what they are about."""

    delay_s: float = 0.0
    one_by_one: bool = False  # requests wait for one another: at most 1 / delay_s per second
    extensions: tuple[str, ...] = EXTENSIONS
    has_config: bool = True
    has_index: bool = True
    has_stats: bool = True
    chunked: bool = False
    close_after_answer: bool = False
    infer_status: Callable[[int], int] = lambda number: 200  # by the number of the request, from 1
    drop_floats: Callable[[int], int] = lambda number: 0  # floats left out of the answer
    silent: Callable[[int], bool] = lambda number: False  # no answer at all
    infers: int = 0
    rows: int = 0
    connections: int = 0
    free_at_s: float = 0.0  # when the requests so far will be done, one by one
    bodies: set[bytes] = field(default_factory=set)  # distinct bodies of inference requests


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.behaviour.connections += 1
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body, self.json_bytes = b"", b"", -1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self.json_bytes = int(value)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        path = self.url.decode()
        if path.endswith("/infer"):
            self.infer(path)
        else:
            status, value = control(self.behaviour, path)
            self.answer(status, json.dumps(value).encode())

    def infer(self, path: str) -> None:
        behaviour = self.behaviour
        behaviour.infers += 1
        behaviour.bodies.add(self.body)
        number = behaviour.infers
        if behaviour.silent(number):
            return
        body, json_bytes = self.body, self.json_bytes

        def reply() -> None:
            status = behaviour.infer_status(number)
            if status != 200:
                self.answer(status, json.dumps({"error": f"made to fail with {status}"}).encode())
            else:
                self.answer(*infer_answer(behaviour, body, json_bytes, behaviour.drop_floats(number)))

        loop = asyncio.get_running_loop()
        if behaviour.one_by_one:
            behaviour.free_at_s = max(behaviour.free_at_s, loop.time()) + behaviour.delay_s
            loop.call_at(behaviour.free_at_s, reply)
        elif behaviour.delay_s:
            loop.call_later(behaviour.delay_s, reply)
        else:
            reply()

    def answer(self, status: int, body: bytes, json_bytes: int = -1) -> None:
        head = [f"HTTP/1.1 {status} Whatever", "Content-Type: application/json"]
        if json_bytes >= 0:
            head[1:] = ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {json_bytes}"]
        if self.behaviour.close_after_answer:
            head.append("Connection: close")
        if self.behaviour.chunked:
            head.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
            body += b"0\r\n\r\n"
        else:
            head.append(f"Content-Length: {len(body)}")
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        if self.behaviour.close_after_answer:
            self.transport.close()


def control(behaviour: Behaviour, path: str) -> tuple[int, object]:
    """Status and JSON of every route but infer."""
    tensor = {"datatype": "FP32", "shape": [-1, 16]}
    routes: dict[str, object] = {
        "/v2": {"name": "test", "version": "1", "extensions": list(behaviour.extensions)},
        "/v2/health/live": {},
        "/v2/health/ready": {},
        f"/v2/models/{MODEL}": {
            "name": MODEL,
            "versions": ["1"],
            "platform": "test",
            "inputs": [{"name": "input", **tensor}],
            "outputs": [{"name": "output", **tensor}],
        },
    }
    if behaviour.has_config:
        spec = {"data_type": "TYPE_FP32", "dims": [16]}
        routes[f"/v2/models/{MODEL}/config"] = {
            "name": MODEL,
            "max_batch_size": MAX_BATCH,
            "input": [{"name": "input", **spec}],
            "output": [{"name": "output", **spec}],
        }
    if behaviour.has_index:
        routes["/v2/repository/index"] = [
            {"name": "broken", "state": "UNAVAILABLE", "reason": "on purpose"},
            {"name": MODEL, "version": "1", "state": "READY"},
        ]
    if behaviour.has_stats:
        routes[f"/v2/models/{MODEL}/stats"] = statistics(behaviour)
    if path in routes:
        return 200, routes[path]
    return 404, {"error": f"Request for unknown model: '{path.split('/')[-1]}' is not found"}


def statistics(behaviour: Behaviour) -> dict[str, Any]:
    """As if each request had waited 10 us, and been run alone for 5, 20 and 5 us."""
    count = behaviour.infers
    times = {"queue": 10, "compute_input": 5, "compute_infer": 20, "compute_output": 5, "success": 40}
    none = {part: {"count": 0, "ns": 0} for part in ("fail", "cache_hit", "cache_miss")}
    parts = {part: {"count": count, "ns": count * us * 1000} for part, us in times.items()}
    model = {
        "name": MODEL,
        "version": "1",
        "last_inference": int(time.time() * 1000),
        "inference_count": behaviour.rows,
        "execution_count": count,
        "inference_stats": parts | none,
        "batch_stats": [],
    }
    return {"model_stats": [model]}


def infer_answer(behaviour: Behaviour, body: bytes, json_bytes: int, drop_floats: int) -> tuple[int, bytes, int]:
    """Status, body and length of its JSON head: the input given back, less `drop_floats` floats."""
    binary = json_bytes >= 0
    message = json.loads(body[:json_bytes] if binary else body)
    tensor = message["inputs"][0]
    rows = tensor["shape"][0]
    if rows > MAX_BATCH:
        text = f"inference request batch-size must be <= {MAX_BATCH} for '{MODEL}'"
        return 400, json.dumps({"error": text}).encode(), -1
    behaviour.rows += rows
    # perf_analyzer sends the header for pure JSON, too
    data = tensor["data"] if "data" in tensor else struct.unpack(f"<{rows * 16}f", body[json_bytes:])
    data = list(data)[: rows * 16 - drop_floats]
    output: dict[str, object] = {"name": "output", "datatype": "FP32", "shape": [rows, 16]}
    answer: dict[str, object] = {"model_name": MODEL, "model_version": "1", "outputs": [output]}
    if not binary:
        output["data"] = data
        return 200, json.dumps(answer).encode(), -1
    output["parameters"] = {"binary_data_size": 4 * len(data)}
    head = json.dumps(answer).encode()
    return 200, head + struct.pack(f"<{len(data)}f", *data), len(head)


@asynccontextmanager
async def running(behaviour: Behaviour) -> AsyncIterator[str]:
    """The URL of a server in this loop."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(behaviour), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-us", type=float, default=0)
    async with running(Behaviour(delay_s=parser.parse_args().delay_us / 1e6)) as url:
        print(url, flush=True)  # noqa: T201  # the one line that its starter reads
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
