"""What a reload under load costs the requests: failures, and latency beside that of the same load without reloads.

    python benchmarks/reload.py [--connections 16] [--reloads 20] [--seconds 5]

A CNN of a few hundred microseconds, 1 instance x 1 thread, closed loop. A failure is any answer but 200, and any
connection that ends.
"""

import argparse
import asyncio
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from harness import make_cnn, serving, write_request

PATH = "/v2/models/cnn/infer"


class Load:
    """Clients that send one request after the other; `latencies_ms` and `failures` of the present phase."""

    def __init__(self, url: str, body: bytes, head_bytes: int) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self.request = f"{head}Inference-Header-Content-Length: {head_bytes}\r\n\r\n".encode() + body
        self.latencies_ms: list[float] = []
        self.failures = 0

    async def client(self) -> None:
        """One connection, until it is cancelled."""
        while True:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            try:
                while True:
                    start_s = time.perf_counter()
                    writer.write(self.request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
                    self.latencies_ms.append((time.perf_counter() - start_s) * 1e3)
                    self.failures += not head.startswith(b"HTTP/1.1 200 ")
            except (OSError, asyncio.IncompleteReadError):
                self.failures += 1
            finally:
                writer.close()

    def phase(self, name: str) -> None:
        """Prints what was measured since the last call, and forgets it."""
        p50, p99, worst = np.percentile(self.latencies_ms, [50, 99, 100])
        print(f"{name:18}{len(self.latencies_ms):10,}{self.failures:8}{p50:10.2f}{p99:10.2f}{worst:10.2f}", flush=True)
        self.latencies_ms, self.failures = [], 0


async def measure(url: str, body: bytes, head_bytes: int, options: argparse.Namespace) -> None:
    """Prints one row for the load alone and one for the load with reloads."""
    load = Load(url, body, head_bytes)
    clients = [asyncio.create_task(load.client()) for _ in range(options.connections)]
    await asyncio.sleep(1)
    load.latencies_ms.clear()
    await asyncio.sleep(options.seconds)
    load.phase("no reload")
    spent_s = []
    for _ in range(options.reloads):
        start_s = time.perf_counter()
        await asyncio.to_thread(reload, url)
        spent_s.append(time.perf_counter() - start_s)
    load.phase(f"{options.reloads} reloads")
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    print(f"a reload takes {np.median(spent_s):.2f} s in the middle, {max(spent_s):.2f} s at most")


def reload(url: str) -> None:
    """Loads the model anew; raises HTTPError when the server refuses."""
    request = urllib.request.Request(f"{url}/v2/repository/models/cnn/load", data=b"{}", method="POST")
    urllib.request.urlopen(request, timeout=60).close()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5, help="length of the measurement without reloads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_cnn(root)
        body = root / "request.bin"
        head_bytes = write_request(body, (1, 1, 28, 28))
        control = ("--model-control-mode", "explicit", "--load-model", "cnn")
        with serving(root, "--instances", "1", "--threads", "1", *control) as server:
            print(f"{'':18}{'requests':>10}{'failed':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
            asyncio.run(measure(server.url, body.read_bytes(), head_bytes, options))


if __name__ == "__main__":
    main()
