"""HTTP, gRPC and system shared memory over either, for tensors of 64 B, 3 kB, 600 kB and 8 MB: one inference's time.

    python benchmarks/shared_memory.py [--seconds 2]

A model that returns its input, one client, one connection. The client writes its input anew and reads the output of
every request, in shared memory too. The ways take turns; medians are printed. "gateway" is the processor time of the
gateway per request. The clients are Python's http.client, and grpcio without code of its own for messages.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from harness import Server, make_identity, serving

FLOATS = {"64 B": 16, "3 kB": 768, "600 kB": 150_528, "8 MB": 2_097_152}
ROUNDS = 4
WAYS = ("HTTP", "gRPC", "HTTP+shm", "gRPC+shm")


class Client:
    """One connection; sends JSON heads with or without a tail."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def infer(self, head: bytes, tail: bytes = b"") -> bytes:
        """The body of the answer."""
        headers = {"Inference-Header-Content-Length": str(len(head))}
        self._connection.request("POST", "/v2/models/identity/infer", head + tail if tail else head, headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}: {body.decode()}")
        return body


def head_of(floats: int, region: str = "") -> bytes:
    """JSON of a request with both tensors in the region, or in the request and the answer."""
    size = 4 * floats
    given: dict[str, object] = {"binary_data_size": size}
    wanted: dict[str, object] = {"binary_data": True}
    if region:
        given = {"shared_memory_region": region, "shared_memory_byte_size": size}
        wanted = {**given, "shared_memory_offset": size}
    tensor = {"name": "input", "shape": [1, floats], "datatype": "FP32", "parameters": given}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "output", "parameters": wanted}]}).encode()


def over_http(client: Client, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Callable[[], float]:
    """One inference with tensors in the messages; answers the last value."""
    head = head_of(values.size)

    def infer() -> float:
        body = client.infer(head, values.tobytes())
        return float(np.frombuffer(body[-values.nbytes :], np.float32)[-1])

    return infer


def over_memory(
    client: Client, values: np.ndarray[tuple[int], np.dtype[np.float32]], memory: SharedMemory
) -> Callable[[], float]:
    """One inference with tensors in shared memory; answers the last value."""
    head = head_of(values.size, "bench")
    return _in_memory(values, memory, lambda: client.infer(head))


def over_grpc(server: Server, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Callable[[], float]:
    """One inference over gRPC with tensors in the messages; answers the last value."""
    call, request = grpc_call(server), grpc_request(values.size)

    def infer() -> float:
        request.raw_input_contents[:] = [values.tobytes()]
        answer = service_pb2.ModelInferResponse.FromString(call(request.SerializeToString()))
        return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[-1])

    return infer


def over_grpc_memory(
    server: Server, values: np.ndarray[tuple[int], np.dtype[np.float32]], memory: SharedMemory
) -> Callable[[], float]:
    """One inference over gRPC with tensors in shared memory; answers the last value."""
    call, message = grpc_call(server), grpc_request(values.size, "bench").SerializeToString()
    return _in_memory(values, memory, lambda: call(message))


def grpc_call(server: Server) -> Callable[[bytes], bytes]:
    """ModelInfer from serialized message to serialized message."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(server.grpc, unlimited)
    call: Callable[[bytes], bytes] = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return call


def grpc_request(floats: int, region: str = "") -> Any:
    """The request without its tensor, or with both tensors in the region."""
    request = service_pb2.ModelInferRequest(model_name="identity")
    given = request.inputs.add(name="input", datatype="FP32", shape=[1, floats])
    wanted = request.outputs.add(name="output")
    if region:
        for offset, tensor in ((0, given), (4 * floats, wanted)):
            tensor.parameters["shared_memory_region"].string_param = region
            tensor.parameters["shared_memory_byte_size"].int64_param = 4 * floats
            tensor.parameters["shared_memory_offset"].int64_param = offset
    return request


def _in_memory(
    values: np.ndarray[tuple[int], np.dtype[np.float32]], memory: SharedMemory, call: Callable[[], object]
) -> Callable[[], float]:
    assert memory.buf is not None
    both = np.frombuffer(memory.buf, np.float32, 2 * values.size)

    def infer() -> float:
        both[: values.size] = values
        call()
        return float(both[values.size :].copy()[-1])

    return infer


def measure(infer: Callable[[], float], expected: float, seconds: float, pid: int) -> tuple[list[float], float]:
    """Milliseconds of each inference, and of the gateway's processor time per inference."""
    took_ms = []
    before_s, end_s = cpu_s(pid), time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < end_s:
        if infer() != expected:
            raise SystemExit("the answer is wrong")
        took_ms.append((time.perf_counter() - start_s) * 1e3)
    return took_ms, (cpu_s(pid) - before_s) * 1e3 / len(took_ms)


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(server: Server, size: str, floats: int, seconds: float) -> None:
    """Prints the row of one size."""
    client = Client(server.url)
    values = np.random.default_rng(0).random(floats, np.float32)
    memory = SharedMemory(create=True, size=8 * floats)
    base = f"{server.url}/v2/systemsharedmemory"
    try:
        body = json.dumps({"key": f"/{memory.name}", "byte_size": 8 * floats}).encode()
        urllib.request.urlopen(f"{base}/region/bench/register", body).close()
        ways = [
            over_http(client, values),
            over_grpc(server, values),
            over_memory(client, values, memory),
            over_grpc_memory(server, values, memory),
        ]
        took: list[list[float]] = [[] for _ in ways]
        gateway: list[list[float]] = [[] for _ in ways]
        for _ in range(ROUNDS):
            for way, infer in enumerate(ways):
                each_ms, cpu_ms = measure(infer, float(values[-1]), seconds / ROUNDS, server.pid)
                took[way] += each_ms
                gateway[way].append(cpu_ms)
        ways.clear()  # which hold the memory
        del infer
        urllib.request.urlopen(f"{base}/unregister", b"{}").close()
    finally:
        memory.unlink()
    cells = [f"{statistics.median(way):10.3f}" for way in took] + [f"{statistics.median(way):10.3f}" for way in gateway]
    print(f"{size:8}{''.join(cells)}", flush=True)


def main() -> None:
    """Prints one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="length of one measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_identity(Path(folder), dims=("n",))
        with serving(Path(folder), "--allow-client-shm", "--instances", "1", "--threads", "1") as server:
            print(f"{'':8}{'ms of one inference':>40}{'ms of the gateway':>40}")
            print(f"{'tensor':8}{''.join(f'{way:>10}' for way in WAYS) * 2}")
            for size, floats in FLOATS.items():
                compare(server, size, floats, options.seconds)


if __name__ == "__main__":
    main()
