"""Requests per second and latency of `efserve serve`, each as a ratio to a reference measured in the same run.

    python benchmarks/serving.py [--seconds 4] [--rounds 3]

A CNN of a few hundred microseconds, 2 instances x 1 thread, beside onnxruntime called in this process by 2 threads with
a session each; and a model that returns its 16 floats, 1 instance, beside a bare uvloop + httptools server with a
constant answer. The client is wrk with one thread on the same cores. Server and reference take turns; medians are
printed, and the ratio is the median of the rounds' own ratios.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from harness import WrkResult, bare_server, make_cnn, make_identity, serving, write_request, wrk

CONCURRENCIES = (1, 8, 32)


def main() -> None:
    """Prints the table of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often server and reference take turns")
    options = parser.parse_args()
    print("model       load  efserve req/s   reference   ratio   p50 us   p99 us  errors")
    with tempfile.TemporaryDirectory() as folder:
        measure_cnn(Path(folder) / "cnn", options.seconds, options.rounds)
        measure_identity(Path(folder) / "identity", options.seconds, options.rounds)


def measure_cnn(root: Path, seconds: int, rounds: int) -> None:
    """The CNN against onnxruntime in process, at batch 1 (the ratio's reference) and at batch 8."""
    path = make_cnn(root)
    body = root / "request.bin"
    head_bytes = write_request(body, (1, 1, 28, 28))
    at_8 = statistics.median(in_process(path, 8, seconds) for _ in range(rounds))
    with serving(root, "--instances", "2", "--threads", "1") as server:
        url = f"{server.url}/v2/models/cnn/infer"
        for connections in CONCURRENCIES:
            take_turns(
                "cnn",
                connections,
                lambda c=connections: wrk(url, body, head_bytes, c, seconds),  # type: ignore[misc]  # bound per loop
                lambda: in_process(path, 1, seconds),
                rounds,
            )
    print(f"{'':10}onnxruntime in process, 2 sessions, batch 8: {at_8:,.0f} inferences/s")


def measure_identity(root: Path, seconds: int, rounds: int) -> None:
    """The model that returns its input against the bare server."""
    make_identity(root)
    body = root / "request.bin"
    head_bytes = write_request(body, (1, 16))
    with serving(root, "--instances", "1", "--threads", "1") as server, bare_server(64) as bare:
        url = f"{server.url}/v2/models/identity/infer"
        for connections in CONCURRENCIES:
            take_turns(
                "identity",
                connections,
                lambda c=connections: wrk(url, body, head_bytes, c, seconds),  # type: ignore[misc]  # bound per loop
                lambda c=connections: wrk(bare, body, head_bytes, c, seconds).requests_per_s,  # type: ignore[misc]
                rounds,
            )


def take_turns(
    model: str, connections: int, run: Callable[[], WrkResult], reference: Callable[[], float], rounds: int
) -> None:
    """Measures both `rounds` times in turns and prints the row."""
    results, references = [], []
    for _ in range(rounds):
        results.append(run())
        references.append(reference())
    ratio = statistics.median(r.requests_per_s / ref for r, ref in zip(results, references, strict=True))
    rate, p50_us, p99_us = (
        statistics.median(getattr(r, field) for r in results) for field in ("requests_per_s", "p50_us", "p99_us")
    )
    errors = sum(r.errors for r in results)
    against = statistics.median(references)
    print(
        f"{model:10}{connections:6}{rate:15,.0f}{against:12,.0f}{ratio:8.2f}{p50_us:9,.0f}{p99_us:9,.0f}{errors:8}",
        flush=True,
    )


def in_process(path: Path, batch: int, seconds: int) -> float:
    """Inferences per second of 2 threads, each with its own single-threaded session."""
    counts = [0, 0]
    until = time.monotonic() + seconds

    def run(number: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {"input": np.zeros((batch, 1, 28, 28), np.float32)}
        while time.monotonic() < until:
            session.run(None, inputs)
            counts[number] += batch

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
