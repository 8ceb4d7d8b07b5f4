"""Does `efserve bench` tell the truth, and how much can it drive? Beside wrk, and perf_analyzer where there is one.

    python benchmarks/clients.py [--seconds 4] [--rounds 3] [--perf-analyzer PATH]

Three parts: the load generator by itself against a bare server with a constant answer (requests/s and its own CPU time
per request); a server that answers after a known delay, where throughput has to be concurrency / delay; and
`efserve serve` with two models, measured in turns by each client. Ratios are medians of the rounds' own ratios.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from efserve.client.answers import HeadCache
from efserve.client.endpoint import Endpoint
from efserve.client.http import HttpConnection, prepare
from efserve.loadtest.closed_loop import ClosedLoop
from harness import bare_server, make_cnn, make_identity, serving, write_request, wrk

CONCURRENCIES = (1, 8, 32)
DELAYS_MS = (20, 100)  # the timers of event loops are a millisecond coarse
DELAYED_SERVER = Path(__file__).parents[1] / "tests" / "v2_server.py"


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often the clients take turns")
    parser.add_argument("--perf-analyzer", help="path of NVIDIA's perf_analyzer, measured too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_alone(Path(folder), options.seconds, options.rounds)
        measure_delays(Path(folder), options.seconds)
        for name, instances in (("cnn", 2), ("identity", 1)):
            root = Path(folder) / name
            (make_cnn if name == "cnn" else make_identity)(root)
            head_bytes = write_request(root / "request.bin", (1, 1, 28, 28) if name == "cnn" else (1, 16))
            with serving(root, "--instances", str(instances), "--threads", "1") as server:
                compare(name, server.url, root / "request.bin", head_bytes, options)


def measure_alone(folder: Path, seconds: int, rounds: int) -> None:
    """The load generator without anything around it, on 64 bytes of tensor, beside wrk."""
    body = folder / "request.bin"
    head_bytes = write_request(body, (1, 16))
    print("client alone   load   req/s      wrk   ratio   CPU us/request")
    with bare_server(184) as url:
        for concurrency in CONCURRENCIES:
            rates, ratios, costs = [], [], []
            for _ in range(rounds):
                rate, cost_us = uvloop.run(drive(url, body.read_bytes(), head_bytes, concurrency, seconds))
                reference = wrk(f"{url}/v2/models/m/infer", body, head_bytes, concurrency, seconds).requests_per_s
                rates.append(rate)
                ratios.append(rate / reference)
                costs.append(cost_us)
            rate, ratio, cost_us = (statistics.median(values) for values in (rates, ratios, costs))
            print(
                f"{'':13}{concurrency:>6} {rate:>7,.0f}  {rate / ratio:>7,.0f}  {ratio:>6.2f}   {cost_us:>6.1f}",
                flush=True,
            )


async def drive(url: str, body: bytes, head_bytes: int, concurrency: int, seconds: int) -> tuple[float, float]:
    """Requests per second, and CPU time of this process per request in us."""
    endpoint, heads = Endpoint(url), HeadCache()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head_bytes)}
    request = prepare(endpoint, "POST", "/v2/models/m/infer", body, headers)
    load = ClosedLoop(lambda listener: HttpConnection(endpoint, listener, heads), [request], concurrency, 10.0)
    load.start()
    await asyncio.sleep(0.2)
    count, wall_s, cpu_s = len(load.ends_ns), time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    count, wall_s, cpu_s = len(load.ends_ns) - count, time.monotonic() - wall_s, time.process_time() - cpu_s
    await load.stop()
    return count / wall_s, cpu_s / count * 1e6


def measure_delays(folder: Path, seconds: int) -> None:
    """Throughput beside concurrency / delay; what it lacks is the server's and the client's own time."""
    print("\nknown delay    load    inf/s   c/delay   ratio")
    for delay_ms in DELAYS_MS:
        command = [sys.executable, str(DELAYED_SERVER), "--delay-us", str(1000 * delay_ms)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                url = server.stdout.readline().strip()
                for concurrency in (1, 8):
                    rate = bench(url, "echo", concurrency, seconds, folder)
                    truth = concurrency / delay_ms * 1e3
                    print(
                        f"{delay_ms:>8} ms {concurrency:>6} {rate:>8,.1f}  {truth:>8,.1f}  {rate / truth:>6.3f}",
                        flush=True,
                    )
            finally:
                server.kill()


def bench(url: str, model: str, concurrency: int, seconds: int, folder: Path) -> float:
    """Inferences per second as `efserve bench` reads them."""
    command = [sys.executable, "-m", "efserve", "bench", "--url", url, "--model", model, "--json", "-"]
    command += ["--concurrency", str(concurrency), "--duration", str(seconds)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["levels"][0]["statistics"]["inferences_per_s"])


def perf_analyzer(program: str, url: str, model: str, concurrency: int) -> float:
    """Inferences per second as perf_analyzer reads them."""
    command = [program, "-m", model, "-u", url.removeprefix("http://"), "--concurrency-range", str(concurrency)]
    # "-s": it gives no figures for a level that it does not find stable
    printed = subprocess.run([*command, "-p", "1000", "-s", "999"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"throughput: ([\d.]+) infer/sec", printed)
    if found is None:
        sys.exit(f"perf_analyzer measured nothing: {printed[-500:]}")
    return float(found[1])


def compare(model: str, url: str, body: Path, head_bytes: int, options: argparse.Namespace) -> None:
    """Each client in turn on the same server."""
    print(f"\n{model:<12} load   efserve bench      wrk   ratio   perf_analyzer   ratio")
    for concurrency in CONCURRENCIES:
        ours, to_wrk, to_analyzer = [], [], []
        for _ in range(options.rounds):
            ours.append(bench(url, model, concurrency, options.seconds, body.parent))
            reference = wrk(f"{url}/v2/models/{model}/infer", body, head_bytes, concurrency, options.seconds)
            to_wrk.append(ours[-1] / reference.requests_per_s)
            if options.perf_analyzer:
                to_analyzer.append(ours[-1] / perf_analyzer(options.perf_analyzer, url, model, concurrency))
        rate, ratio = statistics.median(ours), statistics.median(to_wrk)
        line = f"{'':11}{concurrency:>6} {rate:>15,.0f} {rate / ratio:>8,.0f}  {ratio:>6.2f}"
        if to_analyzer:
            ratio = statistics.median(to_analyzer)
            line += f"   {rate / ratio:>13,.0f}  {ratio:>6.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
