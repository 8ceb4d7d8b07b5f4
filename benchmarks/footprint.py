"""Start time and memory of `efserve serve`.

    python benchmarks/footprint.py [--requests 500000]

Prints the time from the command to ready with the shipped digits model, the resident memory of the gateway and of an
idle worker, and the slope of both over many requests of a model that returns its 16 floats.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from harness import make_identity, rss_mib, serving, write_request, wrk

SHIPPED = Path(__file__).parent.parent / "model_dir"


def main() -> None:
    """Prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000, help="requests over which memory is watched")
    options = parser.parse_args()
    starts = []
    for _ in range(5):
        with serving(SHIPPED, "--model", "digits") as server:
            starts.append(server.ready_s)
            gateway, workers = rss_mib(server.pid), [rss_mib(pid) for pid in server.worker_pids]
    print(f"command to ready, digits: median {statistics.median(starts):.2f} s of {len(starts)} starts")
    print(f"idle: gateway {gateway:.0f} MiB, worker {max(workers):.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        watch_memory(Path(folder), options.requests)


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
        slope = np.polyfit(counts, values, 1)[0] * 1e6 if len(counts) > 1 else float("nan")
        span = f"{values[0]:.1f} -> {values[-1]:.1f} MiB over {served:,} requests"
        print(f"{name}: {span}, slope {slope:.2f} MiB per million")


if __name__ == "__main__":
    main()
