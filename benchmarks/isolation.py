"""What a busy model costs another one on the same machine, with shares of the CPU and without.

    python benchmarks/isolation.py [--rounds 40] [--seconds 1]

Model A (a small CNN) answers one client that sends one request after the other; model B (seven times as large) is
kept busy by two clients, or idle. Three servers take turns, one round after the other:

    shares     --share a=50 --share b=50: each on a core of its own, with one engine thread
    threads 1  one engine thread each, and the kernel decides where they run
    default    as many engine threads as cores, for each

A round measures A alone and beside a busy B on each server. Printed are medians over the rounds, the ratio of the two
p99 as median of the rounds' own ratios, and once more from the quiet quarter: the 25th percentile of either p99. What
else runs on the machine only ever adds to a latency, so that the quiet quarter is nearer to what B alone does to A.

Needs 2 cores. The gateway and the clients are not pinned: they run wherever they are woken, which is beside A as long
as B's core is busy. A waits while they run, and B answers slowly, so that its own requests cost A little.
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import make_convolutions, serving, write_request

SHAPE = (1, 48, 48, 48)
LAYERS = {"a": 3, "b": 20}
SERVERS = {
    "shares": ("--share", "a=50", "--share", "b=50"),
    "threads 1": ("--threads", "1"),
    "default": (),
}
SETTLE_S = 0.2  # for B to be busy, or to have answered its last


@dataclass(frozen=True, slots=True)
class Latency:
    """Of A, in one measurement."""

    p50_ms: float
    p99_ms: float
    requests: int


class Client:
    """One connection that asks one model."""

    def __init__(self, url: str, model: str, body: bytes, head_bytes: int) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self._request = f"{head}Inference-Header-Content-Length: {head_bytes}\r\n\r\n".encode() + body
        self._socket = socket.create_connection((host, int(port)), timeout=60)

    def ask(self) -> None:
        """One request and its whole answer; exits at any status but 200."""
        self._socket.sendall(self._request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            sys.exit(head.decode())
        length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        received = len(rest)
        while received < length:
            received += len(self._receive())

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            sys.exit("the server closed the connection")
        return data

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def measure(client: Client, seconds: float) -> Latency:
    """One request after the other for `seconds`."""
    spent_ms = []
    until_s = time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < until_s:
        client.ask()
        spent_ms.append((time.perf_counter() - start_s) * 1e3)
    p50_ms, p99_ms = np.percentile(spent_ms, [50, 99])
    return Latency(float(p50_ms), float(p99_ms), len(spent_ms))


class Busy:
    """Two processes that keep B busy while they are not stopped."""

    def __init__(self, url: str, body: Path, head_bytes: int) -> None:
        command = [sys.executable, __file__, "--busy", url, "--body", str(body), "--head-bytes", str(head_bytes)]
        self._clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for client in self._clients:
            assert client.stdout is not None
            client.stdout.readline()  # its first answer
        self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """B is busy within the block, and idle soon after."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)
            time.sleep(SETTLE_S)

    def end(self) -> None:
        """No process is left."""
        for client in self._clients:
            client.kill()
            client.communicate()

    def _signal(self, number: signal.Signals) -> None:
        for client in self._clients:
            client.send_signal(number)


def keep_busy(client: Client) -> None:
    """One request after the other until killed; says when the first has been answered."""
    client.ask()
    print("busy", flush=True)
    while True:
        client.ask()


def main() -> None:
    """Prints a row per server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="how often the servers take turns")
    parser.add_argument("--seconds", type=float, default=1, help="length of one measurement")
    parser.add_argument("--busy", help=argparse.SUPPRESS)
    parser.add_argument("--body", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--head-bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.busy:
        keep_busy(Client(options.busy, "b", options.body.read_bytes(), options.head_bytes))
    if len(os.sched_getaffinity(0)) != 2:
        sys.exit("this benchmark is made for 2 cores: run it with taskset -c 0,1")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        for name, layers in LAYERS.items():
            make_convolutions(root / "models", name, SHAPE[1:], layers)
        body = root / "request.bin"
        head_bytes = write_request(body, SHAPE)
        pairs: dict[str, list[tuple[Latency, Latency]]] = {}
        sides = {}
        for name, given in SERVERS.items():
            url = stack.enter_context(serving(root / "models", *given)).url
            others = Busy(url, body, head_bytes)
            stack.callback(others.end)
            sides[name] = (Client(url, "a", body.read_bytes(), head_bytes), others)
            pairs[name] = []
        for turn in range(options.rounds):
            for name, (client, others) in sides.items():
                pairs[name].append(measure_pair(client, others, options.seconds, alone_first=turn % 2 == 0))
        show(pairs)
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"load average {loads}; with nothing else on the machine it stays below 3")


def measure_pair(client: Client, others: Busy, seconds: float, *, alone_first: bool) -> tuple[Latency, Latency]:
    """A alone, and A beside a busy B."""
    found = {}
    for is_busy in (False, True) if alone_first else (True, False):
        with others.running() if is_busy else contextlib.nullcontext():
            client.ask()
            found[is_busy] = measure(client, seconds)
    return found[False], found[True]


def show(pairs: dict[str, list[tuple[Latency, Latency]]]) -> None:
    """The table."""
    print(f"{'':10}{'alone, ms':>18}{'beside B, ms':>18}{'ratio beside B / alone':>30}")
    print(f"{'server':10}{'p50':>9}{'p99':>9}{'p50':>9}{'p99':>9}{'p50':>10}{'p99':>10}{'p99, quiet':>10}")
    for name, rounds in pairs.items():
        sides = tuple(zip(*rounds, strict=True))
        figures = [
            statistics.median(getattr(one, field) for one in side) for side in sides for field in ("p50_ms", "p99_ms")
        ]
        quiet_alone, quiet_beside = (np.percentile([one.p99_ms for one in side], 25) for side in sides)
        ratios = (
            statistics.median(beside.p50_ms / alone.p50_ms for alone, beside in rounds),
            statistics.median(beside.p99_ms / alone.p99_ms for alone, beside in rounds),
            quiet_beside / quiet_alone,
        )
        print(f"{name:10}{''.join(f'{ms:9.2f}' for ms in figures)}{''.join(f'{ratio:10.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
