"""HTTP against system shared memory, for tensors of 64 B, 3 kB, 600 kB and 8 MB: the time of one inference.

    python benchmarks/shared_memory.py [--seconds 2]

A model that returns its input, one client, one connection. The client writes its input anew and reads the output of
every request, in shared memory too. Both ways take turns; medians are printed. "gateway" is the processor time of the
gateway per request.
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

import numpy as np

from harness import Server, make_identity, serving

FLOATS = {"64 B": 16, "3 kB": 768, "600 kB": 150_528, "8 MB": 2_097_152}
ROUNDS = 4


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
    assert memory.buf is not None
    both = np.frombuffer(memory.buf, np.float32, 2 * values.size)

    def infer() -> float:
        both[: values.size] = values
        client.infer(head)
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
        ways = (over_http(client, values), over_memory(client, values, memory))
        took: list[list[float]] = [[], []]
        gateway: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for way, infer in enumerate(ways):
                each_ms, cpu_ms = measure(infer, float(values[-1]), seconds / ROUNDS, server.pid)
                took[way] += each_ms
                gateway[way].append(cpu_ms)
        del ways, infer
        urllib.request.urlopen(f"{base}/unregister", b"{}").close()
    finally:
        memory.unlink()
    medians = [statistics.median(way) for way in took]
    cpus = [statistics.median(way) for way in gateway]
    print(
        f"{size:8}{medians[0]:10.3f}{medians[1]:12.3f}{medians[0] / medians[1]:8.2f}{cpus[0]:16.3f}{cpus[1]:12.3f}",
        flush=True,
    )


def main() -> None:
    """Prints one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="length of one measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_identity(Path(folder), dims=("n",))
        with serving(Path(folder), "--allow-client-shm", "--instances", "1", "--threads", "1") as server:
            print(f"{'tensor':8}{'HTTP ms':>10}{'memory ms':>12}{'ratio':>8}{'gateway HTTP ms':>16}{'memory ms':>12}")
            for size, floats in FLOATS.items():
                compare(server, size, floats, options.seconds)


if __name__ == "__main__":
    main()
