"""gRPC beside HTTP on the same server, by the same client: perf_analyzer in turns; and h2load.

    python benchmarks/protocols.py --perf-analyzer PATH [--rounds 5] [--milliseconds 500] [--part models]

Three parts. `models`: the CNN (2 instances) and the model that returns its 16 floats, at concurrency 1 and 8, unary and
streaming. `payloads`: the same for tensors of 64 B to 8 MB. `h2load`: 10 connections with 100 streams each, which tells
what the port does when the client costs little. The ratio is the median of the rounds' own ratios; perf_analyzer needs
its CUDA library on LD_LIBRARY_PATH.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tritonclient.grpc import service_pb2

from harness import Server, make_cnn, make_identity, serving

COLUMNS = (16, 768, 150_000, 2_000_000)  # FP32: 64 B, 3 kB, 600 kB, 8 MB
LARGE_COLUMNS = 100_000
METHOD = "inference.GRPCInferenceService/ModelInfer"


def main() -> None:
    """Prints the tables of the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perf-analyzer", help="path of NVIDIA's perf_analyzer")
    parser.add_argument("--rounds", type=int, default=5, help="how often the protocols take turns")
    parser.add_argument("--milliseconds", type=int, default=500, help="perf_analyzer's window, of which it takes three")
    parser.add_argument("--part", action="append", choices=("models", "payloads", "h2load"), help="default: all")
    options = parser.parse_args()
    parts = options.part or ["models", "payloads", "h2load"]
    if not options.perf_analyzer and parts != ["h2load"]:
        parser.error("--perf-analyzer is needed for all parts but h2load")
    with tempfile.TemporaryDirectory() as folder:
        if "models" in parts:
            measure_models(Path(folder), options)
        if "payloads" in parts:
            measure_payloads(Path(folder), options)
        if "h2load" in parts:
            measure_h2load(Path(folder), options.rounds)


def measure_models(folder: Path, options: argparse.Namespace) -> None:
    """Both models, unary over both protocols, and streaming."""
    print("model       load   gRPC inf/s       HTTP   ratio   streaming   ratio")
    for name, instances in (("cnn", 2), ("identity", 1)):
        root = folder / name
        (make_cnn if name == "cnn" else make_identity)(root)
        with serving(root, "--instances", str(instances), "--threads", "1") as server:
            for concurrency in (1, 8):
                take_turns(name, server, concurrency, (), options, streams=True)


def measure_payloads(folder: Path, options: argparse.Namespace) -> None:
    """The model that returns its input, with tensors of several sizes."""
    print("\nfloats      load   gRPC inf/s       HTTP   ratio")
    root = folder / "payloads"
    make_identity(root, "identity", ("columns",))
    with serving(root, "--instances", "1", "--threads", "1") as server:
        for columns in COLUMNS:
            for concurrency in (1,) if columns > LARGE_COLUMNS else (1, 8):
                shape = ("--shape", f"input:{columns}")
                take_turns("identity", server, concurrency, shape, options, title=str(columns))


def take_turns(  # a row of a table
    model: str,
    server: Server,
    concurrency: int,
    more: tuple[str, ...],
    options: argparse.Namespace,
    *,
    title: str = "",
    streams: bool = False,
) -> None:
    """Measures each protocol `rounds` times in turns and prints the row."""
    figures: dict[str, list[float]] = {"grpc": [], "http": [], "stream": []}
    for _ in range(options.rounds):
        base = (options.perf_analyzer, model, concurrency, options.milliseconds)
        figures["http"].append(perf_analyzer(*base, "-u", server.url.removeprefix("http://"), *more))
        figures["grpc"].append(perf_analyzer(*base, "-u", server.grpc, "-i", "grpc", *more))
        if streams:
            streaming = ("-i", "grpc", "--streaming", "--async")
            figures["stream"].append(perf_analyzer(*base, "-u", server.grpc, *streaming, *more))

    def ratio(which: str) -> float:
        return statistics.median([ours / http for ours, http in zip(figures[which], figures["http"], strict=True)])

    grpc, http = statistics.median(figures["grpc"]), statistics.median(figures["http"])
    line = f"{title or model:<10}{concurrency:>6} {grpc:>12,.0f} {http:>10,.0f}  {ratio('grpc'):>6.2f}"
    if streams:
        line += f"   {statistics.median(figures['stream']):>9,.0f}  {ratio('stream'):>6.2f}"
    print(line, flush=True)


def perf_analyzer(program: str, model: str, concurrency: int, milliseconds: int, *more: str) -> float:
    """Inferences per second as perf_analyzer reads them."""
    command = [program, "-m", model, "--concurrency-range", str(concurrency), "-p", str(milliseconds), *more]
    # "-s": it gives no figures for a level that it does not find stable
    printed = subprocess.run([*command, "-s", "999"], capture_output=True, text=True, check=False)
    found = re.search(r"throughput: ([\d.]+) infer/sec", printed.stdout)
    if found is None:
        sys.exit(f"perf_analyzer measured nothing: {printed.stdout[-500:]}{printed.stderr[-500:]}")
    return float(found[1])


def measure_h2load(folder: Path, rounds: int) -> None:
    """Requests per second of the model that returns its input, from a client that does little."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed; on Debian: apt-get install nghttp2-client")
    root = folder / "h2load"
    make_identity(root)
    request = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(64)])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    message = request.SerializeToString()
    body = root / "body"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    command = ["h2load", "-c", "10", "-m", "100", "-n", "100000", "-d", str(body)]
    command += ["-H", "content-type: application/grpc"]
    with serving(root, "--instances", "1", "--threads", "1") as server:
        rates = []
        for _ in range(rounds):
            done = subprocess.run(
                [*command, f"http://{server.grpc}/{METHOD}"], capture_output=True, text=True, check=True
            )
            if "100000 succeeded, 0 failed" not in done.stdout:
                sys.exit(f"h2load: {done.stdout}")
            rates += [float(rate) for rate in re.findall(r"([\d.]+) req/s", done.stdout)]
    print(f"\nh2load, 10 connections x 100 streams: {statistics.median(rates):,.0f} requests/s")


if __name__ == "__main__":
    main()
