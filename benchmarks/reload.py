"""What reloads under load cost the requests: failures, and waiting beside that of the same load without reloads.

    python benchmarks/reload.py [--connections 16] [--reloads 10] [--rounds 4] [--loads 1 0.5] [--layers 2]

A CNN of a few hundred microseconds, or with --layers a network of so many convolutions, each of one to two
milliseconds; 1 instance x 1 thread; first as fast as its clients go, then at shares of that rate. Each round reloads
the model, one time after the other, and lets the same load run for as long without. A request is late when it waited
longer than any one without reloads did, by more than one inference of a whole batch. A failure is any answer but 200,
and any connection that ends.
"""

import argparse
import asyncio
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

from harness import make_cnn, make_convolutions, serving, write_request

_ROWS = 8  # of a whole batch
_DIMS = (3, 48, 48)  # of a row for the convolutions
_LEAVE_S = 0.3  # for the last worker that was replaced to end


@dataclass(slots=True)
class Phase:
    """What the clients met in one stretch of time."""

    waits_ms: list[float] = field(default_factory=list)
    failures: int = 0
    lasted_s: float = 0.0

    def __iadd__(self, other: "Phase") -> "Phase":
        self.waits_ms += other.waits_ms
        self.failures += other.failures
        self.lasted_s += other.lasted_s
        return self

    def show(self, name: str) -> None:
        """Prints a row of the table."""
        p50, p99, p999, longest = np.percentile(self.waits_ms, [50, 99, 99.9, 100])
        print(
            f"{name:26}{len(self.waits_ms):9,}{self.failures:8}{len(self.waits_ms) / self.lasted_s:9,.0f}"
            f"{p50:9.2f}{p99:9.2f}{p999:9.2f}{longest:9.2f}",
            flush=True,
        )


class Client(asyncio.Protocol):
    """A connection that has one request under way; with a `pause_s`, one begins every so often, or as soon after."""

    def __init__(self, load: "Load", first_s: float) -> None:
        self._load = load
        self._intended_s = first_s
        self._answer = bytearray()

    def itself(self) -> "Client":
        """The protocol of its connection."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._load.open.add(self._transport)
        self._send_in_time()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head_end = self._answer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._answer[:head_end]).lower()
        length = int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        if len(self._answer) < head_end + 4 + length:
            return
        self._answer.clear()
        now_s = time.perf_counter()
        self._phase.waits_ms.append((now_s - self._intended_s) * 1e3)
        self._phase.failures += not head.startswith(b"http/1.1 200 ")
        self._intended_s = self._intended_s + self._load.pause_s if self._load.pause_s else now_s
        self._send_in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.open.discard(self._transport)
        self._phase.failures += not self._load.is_over

    def _send_in_time(self) -> None:
        self._phase = self._load.phase
        wait_s = self._intended_s - time.perf_counter()
        if wait_s <= 0:
            self._send()
        else:
            asyncio.get_running_loop().call_later(wait_s, self._send)

    def _send(self) -> None:
        if not self._load.is_over:
            self._transport.write(self._load.request)


class Load:
    """The clients; `phase` takes what they meet now."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.pause_s = 0.0
        self.phase = Phase()
        self.open: set[asyncio.Transport] = set()
        self.is_over = False

    async def begin(self, host: str, port: int, connections: int, rate: float) -> None:
        """Opens the connections, whose requests come to `rate` per second in all; 0: as fast as they go."""
        self.pause_s = connections / rate if rate else 0.0
        now_s = time.perf_counter()
        for index in range(connections):
            client = Client(self, now_s + self.pause_s * index / connections)
            await asyncio.get_running_loop().create_connection(client.itself, host, port)

    def end(self) -> None:
        """Closes the connections."""
        self.is_over = True
        for transport in [*self.open]:
            transport.abort()


async def call(host: str, port: int, method: str, path: str) -> bytes:
    """The body of an answer; exits where it is not 200."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"{path}: {body.decode()}")
    return body


async def inference_ms(host: str, port: int) -> float:
    """How long a whole batch takes in the worker, on average so far; a smaller one where there was none."""
    stats = json.loads(await call(host, port, "GET", "/v2/models/cnn/stats"))["model_stats"][0]["batch_stats"]
    batch = max(stats, key=lambda each: (each["batch_size"] <= _ROWS, each["batch_size"]))
    parts = [batch[part] for part in ("compute_input", "compute_infer", "compute_output")]
    return float(sum(part["ns"] for part in parts) / parts[0]["count"] / 1e6)


async def measure(host: str, port: int, load: Load, options: argparse.Namespace) -> tuple[Phase, Phase, list[float]]:
    """All rounds of one load: what was met without reloads and with them, and how long each reload took."""
    await asyncio.sleep(1)
    without, during, spent_s = Phase(), Phase(), []
    for number in range(options.rounds):
        load.phase = reloads = Phase()
        start_s = time.perf_counter()
        for _ in range(options.reloads):
            begun_s = time.perf_counter()
            await call(host, port, "POST", "/v2/repository/models/cnn/load")
            spent_s.append(time.perf_counter() - begun_s)
        await asyncio.sleep(_LEAVE_S)
        reloads.lasted_s = time.perf_counter() - start_s
        load.phase = alone = Phase()
        alone.lasted_s = reloads.lasted_s
        await asyncio.sleep(alone.lasted_s)
        load.phase = Phase()
        await asyncio.sleep(_LEAVE_S)  # for the answers to what was sent before
        alone.show(f"  round {number + 1}, no reload")
        reloads.show(f"  round {number + 1}, {options.reloads} reloads")
        without += alone
        during += reloads
    return without, during, spent_s


def judge(without: Phase, during: Phase, spent_s: list[float], one_ms: float) -> None:
    """Prints all rounds together, and how many requests were late."""
    without.show("all, no reload")
    during.show(f"all, {len(spent_s)} reloads")
    limit_ms = max(without.waits_ms) + one_ms
    late = sum(wait_ms > limit_ms for wait_ms in during.waits_ms)
    print(
        f"one inference of {_ROWS} rows takes {one_ms:.2f} ms; longest wait {max(without.waits_ms):.2f} ms without "
        f"reloads, {max(during.waits_ms):.2f} ms with them: {late} of {len(during.waits_ms):,} requests late"
    )
    print(f"a reload takes {np.median(spent_s):.2f} s in the middle, {max(spent_s):.2f} s at most")


async def run(url: str, request: bytes, options: argparse.Namespace) -> None:
    """Measures every load; the first tells what the others are shares of."""
    host, _, port = url.removeprefix("http://").partition(":")
    highest = math.nan
    for share in options.loads:
        rate = 0.0 if share >= 1 else highest * share
        load = Load(request)
        await load.begin(host, int(port), options.connections, rate)
        print(f"{f'{rate:,.0f} requests/s' if rate else 'as fast as they go'}, {options.connections} connections")
        print(f"{'':26}{'requests':>9}{'failed':>8}{'1/s':>9}{'p50 ms':>9}{'p99':>9}{'p99.9':>9}{'longest':>9}")
        without, during, spent_s = await measure(host, int(port), load, options)
        one_ms = await inference_ms(host, int(port))
        load.end()
        judge(without, during, spent_s, one_ms)
        if not rate:
            highest = len(without.waits_ms) / without.lasted_s


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--reloads", type=int, default=10, help="in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--loads", type=float, nargs="+", default=[1, 0.5], help="shares of the highest rate; 1 first")
    parser.add_argument("--layers", type=int, default=0, help="convolutions of the network; 0: the small CNN")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.layers:
            make_convolutions(root, "cnn", _DIMS, options.layers, channels=128)
        else:
            make_cnn(root, max_batch=_ROWS)
        body = root / "request.bin"
        head_bytes = write_request(body, (1, *(_DIMS if options.layers else (1, 28, 28))))
        data = body.read_bytes()
        head = f"POST /v2/models/cnn/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        request = f"{head}Inference-Header-Content-Length: {head_bytes}\r\n\r\n".encode() + data
        control = ("--model-control-mode", "explicit", "--load-model", "cnn")
        with serving(root, "--instances", "1", "--threads", "1", *control) as server:
            uvloop.run(run(server.url, request, options))


if __name__ == "__main__":
    main()
