"""Does `efserve bench` tell the truth? Beside servers of known speed, theory, wrk, and perf_analyzer where it is there.

    python benchmarks/bench_truth.py [--seconds 5] [--rounds 3] [--overload 20 40] [--perf-analyzer PATH]

1. A server that sleeps a known time, concurrency 2: throughput has to be 2 / sleep (within 2 %; beside it the same for
   what it really slept, which is longer on a busy machine), and the latencies those of wrk and perf_analyzer (within
   5 %). Medians of rounds in which the clients take turns.
2. A server that works on one request at a time, in an open loop at twice its capacity: the queue grows for as long as
   the run lasts, and p99 with it, by a formula (within 10 %).
3. A server that answers at once: requests/s of one client process, and its CPU time per request (20,000/s, 25 us).
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness import write_request, wrk

SERVER = Path(__file__).with_name("truth_server.py")
SLEEPS_MS = (20, 100)
WORK_MS = 10  # of the server with a queue: 100 requests/s
WARMUP_S = 0.5
CONCURRENCIES = (8, 32)


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often the clients take turns")
    parser.add_argument("--overload", type=int, nargs="*", default=[20, 40], help="lengths of the runs at 2 C")
    parser.add_argument("--perf-analyzer", help="path of NVIDIA's perf_analyzer, measured too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known_sleep(Path(folder), options.seconds, options.rounds, options.perf_analyzer)
        overload(Path(folder), options.overload)
        client_cost(Path(folder), options.seconds)


@contextlib.contextmanager
def truth_server(*arguments: str) -> Iterator[str]:
    """The URL of a server of known speed."""
    command = [sys.executable, str(SERVER), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def bench(folder: Path, url: str, *options: str) -> dict[str, Any]:
    """The statistics of one level as `efserve bench` reports them."""
    command = [sys.executable, "-m", "efserve", "bench", "--url", url, "--model", "m", "--json", "-", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    statistics: dict[str, Any] = json.loads(done.stdout)["levels"][0]["statistics"]
    return statistics


def perf_analyzer(program: str, url: str, concurrency: int) -> tuple[float, float]:
    """p50 and p99 in us as perf_analyzer reads them."""
    command = [program, "-m", "m", "-u", url.removeprefix("http://"), "--concurrency-range", str(concurrency)]
    # "-s": it gives no figures for a level that it does not find stable
    printed = subprocess.run([*command, "-p", "2000", "-s", "999"], capture_output=True, text=True, check=False)
    found = [re.search(rf"p{number} latency: (\d+) usec", printed.stdout) for number in (50, 99)]
    if None in found:
        sys.exit(f"perf_analyzer measured nothing: {(printed.stdout + printed.stderr)[-500:]}")
    p50, p99 = (float(match[1]) for match in found if match)
    return p50, p99


def known_sleep(folder: Path, seconds: int, rounds: int, analyzer: str | None) -> None:
    """Throughput beside 2 / sleep, and p50 and p99 beside those of the other clients."""
    body = folder / "request.bin"
    head_bytes = write_request(body, (1, 16))
    print("known sleep     inf/s   2/sleep   ratio   2/slept's      p50 us   p99 us      to wrk's   to perf_analyzer's")
    for sleep_ms in SLEEPS_MS:
        rates, to_slept, latencies, to_wrk, to_analyzer = [], [], [], [], []
        with truth_server("sleep", str(sleep_ms)) as url:
            for _ in range(rounds):
                found = bench(folder, url, "--concurrency", "2", "--duration", str(seconds))
                own = found["latency"]["p50_us"], found["latency"]["p99_us"]
                reference = wrk(f"{url}/v2/models/m/infer", body, head_bytes, 2, seconds)
                rates.append(found["inferences_per_s"])
                to_slept.append(rates[-1] * found["server"]["compute_infer_us"] / 2e6)
                latencies.append(own)
                to_wrk.append((own[0] / reference.p50_us, own[1] / reference.p99_us))
                if analyzer:
                    p50, p99 = perf_analyzer(analyzer, url, 2)
                    to_analyzer.append((own[0] / p50, own[1] / p99))
        rate, truth, (p50, p99) = float(np.median(rates)), 2e3 / sleep_ms, np.median(latencies, axis=0)
        line = f"{sleep_ms:>8} ms {rate:>9.2f} {truth:>9.2f} {rate / truth:>7.3f} {np.median(to_slept):>11.3f}"
        line += f"   {p50:>9,.0f}{p99:>9,.0f}"
        for ratios in (to_wrk, to_analyzer):
            if ratios:
                line += "   {:.3f} {:.3f}".format(*np.median(ratios, axis=0))
        print(line, flush=True)


def queue_p99_s(work_s: float, per_s: float, warmup_s: float, length_s: float) -> float:
    """p99 latency of the answers in a run: requests come evenly, and too many for a server that works on one at a time.

    Answer n (from 1) comes at n * work, its request was due at (n - 1) / rate: all in order, the server never idle.
    """
    first, last = np.floor(warmup_s / work_s) + 1, np.floor((warmup_s + length_s) / work_s)
    answers = np.arange(first, last + 1)
    return float(np.percentile(answers * work_s - (answers - 1) / per_s, 99))


def overload(folder: Path, lengths_s: list[int]) -> None:
    """p99 in an open loop at twice the capacity."""
    capacity = 1e3 / WORK_MS
    print(f"\nopen loop at 2 C   p99 s   theory   ratio    answers/s   C = {capacity:g}/s")
    for length_s in lengths_s:
        with truth_server("queue", str(WORK_MS)) as url:
            times = ("--warmup", str(WARMUP_S), "--duration", str(length_s), "--timeout", "120")
            found = bench(folder, url, "--request-rate", str(2 * capacity), *times)
        p99_s = found["latency"]["p99_us"] / 1e6
        theory_s = queue_p99_s(WORK_MS / 1e3, 2 * capacity, WARMUP_S, length_s)
        rate = found["requests_per_s"]
        print(f"{length_s:>14} s {p99_s:>8.2f} {theory_s:>8.2f} {p99_s / theory_s:>7.3f} {rate:>12.1f}", flush=True)


def client_cost(folder: Path, seconds: int) -> None:
    """What one process drives, and what a request costs it, on 64 bytes of tensor."""
    body = folder / "request.bin"
    head_bytes = write_request(body, (1, 16))
    print("\nanswers at once   load     req/s       wrk   ratio   client CPU us/request")
    with truth_server("constant") as url:
        for concurrency in CONCURRENCIES:
            found = bench(folder, url, "--concurrency", str(concurrency), "--duration", str(seconds))
            rate = found["requests_per_s"]
            reference = wrk(f"{url}/v2/models/m/infer", body, head_bytes, concurrency, seconds).requests_per_s
            cost_us = found["client_cpu_cores"] / rate * 1e6
            print(
                f"{concurrency:>22} {rate:>9,.0f} {reference:>9,.0f} {rate / reference:>7.2f} {cost_us:>15.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
