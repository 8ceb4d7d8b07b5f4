"""Start time and memory of `efserve serve`.

    python benchmarks/footprint.py [--requests 500000] [--calls 200000] [--connections 20000]

Prints the time from the command to ready with the shipped digits model (its modules compiled, as an installation has
them, whatever PYTHONDONTWRITEBYTECODE says), the resident memory of the gateway and of an
idle worker, and the slope of both over many requests of a model that returns its 16 floats: over HTTP, over gRPC on
one connection, and over gRPC with a connection for each.
"""

import argparse
import asyncio
import compileall
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

import efserve
from efserve.codec.grpc import framed
from grpc_load import calls_on_one_connection, connections
from harness import make_identity, rss_mib, serving, write_request, wrk

SHIPPED = Path(__file__).parent.parent / "model_dir"


def main() -> None:
    """Prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000, help="requests over which memory is watched")
    parser.add_argument("--calls", type=int, default=200_000, help="the same, over gRPC on one connection")
    parser.add_argument("--connections", type=int, default=20_000, help="the same, of one gRPC call each")
    options = parser.parse_args()
    compileall.compile_dir(efserve.__path__[0], quiet=1)
    starts = []
    for _ in range(5):
        with serving(SHIPPED, "--model", "digits") as server:
            starts.append(server.ready_s)
            gateway, workers = rss_mib(server.pid), [rss_mib(pid) for pid in server.worker_pids]
    print(f"command to ready, digits: median {statistics.median(starts):.2f} s of {len(starts)} starts")
    print(f"idle: gateway {gateway:.0f} MiB, worker {max(workers):.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        watch_memory(Path(folder), options.requests)
        watch_grpc(Path(folder), "calls on one gRPC connection", calls_on_one_connection, options.calls)
        watch_grpc(Path(folder), "gRPC connections", connections, options.connections)


def watch_memory(root: Path, requests: int) -> None:
    """Resident memory against the number of requests served, and its slope by least squares."""
    make_identity(root)
    body = root / "request.bin"
    head_bytes = write_request(body, (1, 16))
    with serving(root) as server:
        served, counts, gateway, workers = 0, [], [], []
        url = f"{server.url}/v2/models/identity/infer"
        while served < requests:
            served += wrk(url, body, head_bytes, 32, 1).requests
            counts.append(served)
            gateway.append(rss_mib(server.pid))
            workers.append(sum(rss_mib(pid) for pid in server.worker_pids))
    for name, values in (("gateway", gateway), ("worker", workers)):
        tell(name, "requests", counts, values)


def watch_grpc(root: Path, what: str, load: Callable[[str, bytes, int], Coroutine[Any, Any, None]], total: int) -> None:
    """Resident memory of the gateway against the number of calls or connections, in ten steps after the first."""
    request = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(64)])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    message = b"".join(framed([request.SerializeToString()]))
    with serving(root) as server:
        counts, gateway = [], []
        for step in range(11):
            asyncio.run(load(f"grpc://{server.grpc}", message, total // 11))
            counts.append((step + 1) * (total // 11))
            gateway.append(rss_mib(server.pid))
    tell("gateway", what, counts, gateway)


def tell(name: str, what: str, counts: list[int], values: list[float]) -> None:
    """Prints how much memory has grown, and its slope."""
    slope = np.polyfit(counts, values, 1)[0] * 1e6 if len(counts) > 1 else float("nan")
    print(
        f"{name}: {values[0]:.1f} -> {values[-1]:.1f} MiB over {counts[-1]:,} {what}, slope {slope:.2f} MiB per million"
    )


if __name__ == "__main__":
    main()
