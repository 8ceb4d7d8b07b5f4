"""What a busy model costs another one on the same machine, with shares of the CPU and without.

    python benchmarks/isolation.py [--rounds 60] [--seconds 0.4] [--quiet 0.1]

Model A (a small CNN) answers one client that sends one request after the other; model B (seven times as large) is
kept busy by two clients, or idle. Three servers take turns, one round after the other:

    shares     --share a=50 --share b=50: each on a core of its own, with one engine thread
    threads 1  one engine thread each, and the kernel decides where they run
    default    as many engine threads as cores, for each

A round measures A alone and beside a busy B on each server, for moments of a fraction of a second. For each moment the
processor time that none of these processes took, of the whole machine, is noted: what other programs took. Printed are
percentiles over all requests, and over those of the quiet moments, in which others took less than `--quiet` cores.

Needs 2 cores. In all three, B's clients are pinned to the second core, which is B's where there are shares: what they
do to send and receive is the client's cost, and would else be A's. The gateway and A's client run wherever they are
woken.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from harness import make_convolutions, serving, write_request

SHAPE = (1, 3, 32, 32)
LAYERS, CHANNELS = {"a": 12, "b": 84}, 32
SERVERS = {
    "shares": ("--share", "a=50", "--share", "b=50"),
    "threads 1": ("--threads", "1"),
    "default": (),
}
LEAST = 500  # requests, for a p99
SETTLE_S = 0.2  # for B to be busy, or to have answered its last


@dataclass(frozen=True, slots=True)
class Moment:
    """A's requests in one measurement."""

    latencies_ms: list[float]
    foreign_cores: float  # processor time that other programs took, per time


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


def measure(client: Client, seconds: float, own: Sequence[psutil.Process]) -> Moment:
    """One request after the other for `seconds`; `own` are all processes of this benchmark."""
    spent_ms = []
    before = foreign_s(own)
    start_s = began_s = time.perf_counter()
    while start_s < began_s + seconds:
        client.ask()
        end_s = time.perf_counter()
        spent_ms.append((end_s - start_s) * 1e3)
        start_s = end_s
    return Moment(spent_ms, (foreign_s(own) - before) / (start_s - began_s))


def foreign_s(own: Sequence[psutil.Process]) -> float:
    """Processor time that others than these processes have taken so far, on all cores."""
    machine = psutil.cpu_times()
    taken_s = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
    return float(taken_s - sum(sum(process.cpu_times()[:2]) for process in own))


class Busy:
    """Two processes that keep B busy while they are not stopped."""

    def __init__(self, url: str, body: Path, head_bytes: int) -> None:
        command = [sys.executable, __file__, "--busy", url, "--body", str(body), "--head-bytes", str(head_bytes)]
        self._clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for client in self._clients:
            assert client.stdout is not None
            client.stdout.readline()  # its first answer
        self.pids = [client.pid for client in self._clients]
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
    """One request after the other until killed; says when the first has been answered. Runs beside B."""
    os.sched_setaffinity(0, {1})
    client.ask()
    print("busy", flush=True)
    while True:
        client.ask()


def main() -> None:
    """Prints a row per server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="how often the servers take turns")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of one measurement")
    parser.add_argument("--quiet", type=float, default=0.1, help="cores that others may take in a quiet moment")
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
            make_convolutions(root / "models", name, SHAPE[1:], layers, CHANNELS)
        body = root / "request.bin"
        head_bytes = write_request(body, SHAPE)
        sides: dict[str, tuple[Client, Busy]] = {}
        own = [psutil.Process()]
        for name, given in SERVERS.items():
            server = stack.enter_context(serving(root / "models", *given))
            others = Busy(server.url, body, head_bytes)
            stack.callback(others.end)
            sides[name] = (Client(server.url, "a", body.read_bytes(), head_bytes), others)
            own += map(psutil.Process, (server.pid, *server.worker_pids, *others.pids))
        alone: dict[str, list[Moment]] = {name: [] for name in sides}
        beside: dict[str, list[Moment]] = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name, (client, others) in sides.items():
                for is_busy in (False, True) if turn % 2 else (True, False):
                    with others.running() if is_busy else contextlib.nullcontext():
                        client.ask()
                        (beside if is_busy else alone)[name].append(measure(client, options.seconds, own))
        show(alone, beside, float("inf"), "all moments")
        show(alone, beside, options.quiet, f"moments in which other programs took less than {options.quiet:g} cores")
    every = [moment.foreign_cores for moments in (*alone.values(), *beside.values()) for moment in moments]
    print(f"\nother programs took {np.mean(every):.2f} cores on average")


def show(alone: dict[str, list[Moment]], beside: dict[str, list[Moment]], quiet: float, title: str) -> None:
    """The table of the moments in which others took less than `quiet` cores."""
    print(f"\n{title}")
    print(
        f"{'':10}{'alone: p50':>12}{'p99 ms':>8}{'requests':>10}{'beside B: p50':>16}{'p99 ms':>8}{'requests':>10}",
        end="",
    )
    print(f"{'ratio of p50':>14}{'of p99':>8}")
    for name in alone:
        print(f"{name:10}", end="")
        found = []
        for moments, width in ((alone[name], 12), (beside[name], 16)):
            pooled = [ms for moment in moments if moment.foreign_cores < quiet for ms in moment.latencies_ms]
            found.append(np.percentile(pooled, [50, 99]) if len(pooled) >= LEAST else np.array([np.nan, np.nan]))
            print(f"{found[-1][0]:{width}.2f}{found[-1][1]:8.2f}{len(pooled):10,}", end="")
        p50_ratio, p99_ratio = found[1] / found[0]
        print(f"{p50_ratio:14.2f}{p99_ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
