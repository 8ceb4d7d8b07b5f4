"""v2 servers whose speed is known, for checking what load generators report. One model, `m`: FP32 [1, 16] to itself.

    python truth_server.py constant          answers at once: uvloop and httptools, nothing else
    python truth_server.py sleep MS          sleeps that long for each request, however many there are at a time
    python truth_server.py queue MS          works that long on each request, one after the other: 1000/MS requests/s

Prints its URL, then serves until killed.
"""

import asyncio
import json
import re
import socket
import struct
import sys
import threading
import time
from typing import cast

import httptools
import uvloop

TENSOR = {"datatype": "FP32", "shape": [-1, 16]}
MODEL = {
    "name": "m",
    "versions": ["1"],
    "platform": "truth",
    "inputs": [{"name": "input", **TENSOR}],
    "outputs": [{"name": "output", **TENSOR}],
}
CONFIG = {
    "name": "m",
    "max_batch_size": 8,
    "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [16]}],
    "output": [{"name": "output", "data_type": "TYPE_FP32", "dims": [16]}],
}
ROUTES = {
    b"/v2": {"name": "truth", "version": "1", "extensions": ["binary_tensor_data", "model_configuration"]},
    b"/v2/health/live": {},
    b"/v2/health/ready": {},
    b"/v2/models/m": MODEL,
    b"/v2/models/m/ready": {},
    b"/v2/models/m/config": CONFIG,
    b"/v2/repository/index": [{"name": "m", "version": "1", "state": "READY"}],
}


class Slept:
    """How often and how long `sleep` has really slept."""

    count = 0
    total_ns = 0
    lock = threading.Lock()


def statistics() -> dict[str, object]:
    """What has been slept, as the time of the model; perf_analyzer insists on all the fields."""
    slept, none = {"count": Slept.count, "ns": Slept.total_ns}, {"count": Slept.count, "ns": 0}
    parts = dict.fromkeys(("fail", "queue", "compute_input", "compute_output"), none)
    counts = {"last_inference": 0, "inference_count": Slept.count, "execution_count": Slept.count}
    stats = {**parts, "success": slept, "compute_infer": slept}
    return {"model_stats": [{"name": "m", "version": "1", **counts, "inference_stats": stats, "batch_stats": []}]}


def answer_to(path: bytes) -> bytes:
    """The answer of every route but infer."""
    if path.endswith(b"/stats"):
        return _message(b"200 OK", json.dumps(statistics()).encode())
    if path in ROUTES:
        return _message(b"200 OK", json.dumps(ROUTES[path]).encode())
    return _message(b"404 Not Found", b'{"error":"no such route"}')


def _message(status: bytes, body: bytes, head: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body)


def inference() -> bytes:
    """The one answer to all inference requests: 64 bytes of zeros."""
    output = {"name": "output", "datatype": "FP32", "shape": [1, 16], "parameters": {"binary_data_size": 64}}
    text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()
    head = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(text)
    return _message(b"200 OK", text + bytes(64), head)


INFERENCE = inference()


class Connection(asyncio.Protocol):
    """A client of `constant` and `queue`. `free_at` is the time at which the work on all requests so far ends."""

    free_at = 0.0

    def __init__(self, work_s: float) -> None:
        self._work_s = work_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop: no subclass of it
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if not self._url.endswith(b"/infer"):
            self._transport.write(answer_to(self._url))
        elif not self._work_s:
            self._transport.write(INFERENCE)
        else:
            loop = asyncio.get_running_loop()
            Connection.free_at = max(Connection.free_at, loop.time()) + self._work_s
            loop.call_at(Connection.free_at, self._transport.write, INFERENCE)


async def serve(work_s: float) -> None:
    """`constant`, or with some work `queue`."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(work_s), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def serve_sleeping(sleep_s: float) -> None:
    """A thread per connection: the sleep of a thread is exact to some 0.1 ms, a loop's timer only to 1 ms."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_sleep_and_answer, args=(client, sleep_s), daemon=True).start()


def _sleep_and_answer(client: socket.socket, sleep_s: float) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 600, 0))
    data = b""
    while True:
        while (cut := data.find(b"\r\n\r\n")) < 0:
            data += (more := client.recv(1 << 16))
            if not more:
                return
        length = re.search(rb"(?i)content-length: *(\d+)", data[:cut])
        whole = cut + 4 + (int(length[1]) if length else 0)
        while len(data) < whole:
            data += client.recv(1 << 16)
        path = data.split(b" ", 2)[1]
        data = data[whole:]
        if path.endswith(b"/infer"):
            began_ns = time.monotonic_ns()
            time.sleep(sleep_s)
            with Slept.lock:
                Slept.count += 1
                Slept.total_ns += time.monotonic_ns() - began_ns
            client.sendall(INFERENCE)
        else:
            client.sendall(answer_to(path))


if __name__ == "__main__":
    if sys.argv[1] == "sleep":
        serve_sleeping(float(sys.argv[2]) / 1e3)
    else:
        uvloop.run(serve(float(sys.argv[2]) / 1e3 if sys.argv[1] == "queue" else 0.0))
