"""Whether a plan does what its simulation says: the same Poisson arrivals, simulated and served.

    python benchmarks/live_plan.py [--case each] [--seconds 100] [--repeats 2] [--load 0.3] [--sleep]

Makes two convolutional networks (with --sleep: models that only wait, which a busy machine disturbs less), profiles
them on this machine, alone and side by side, and plans them: each on a partition of its own (`each`), or both in turns
on the whole machine (`turns`). Each plan is served and gets requests at the times of a trace by `efserve bench`;
`efserve simulate` gets the same trace. Prints p50 and p99 of both, their ratios, the ratio of what batches took in the
profile to what they took in the server, and what other processes used of the machine meanwhile. With --repeats the same
trace is served again, and the last lines say how far the measurements are apart: no simulation can be nearer than that.
Needs a quiet machine with two cores or more; takes about two minutes for each case and repeat.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from efserve.planning.plan import Plan, read_plan
from efserve.planning.tables import kinds, read_capacities
from efserve.profiles import ProfileRow, profile_path, read_profile
from efserve.records import read_result
from harness import Server, make_convolutions, serving

LAYERS = {"short": 2, "long": 5}  # of each network
WIDTH, SIDE = 128, 48  # channels of a layer, pixels
SLO_OF_BATCH = 10.0  # the SLO of both, in batches of one of the slower model on a core
BATCHES = "1,2"
WAY_SECONDS = 10.0
SLEEPER = """
import time
class Model:
    def __init__(self, config, folder):
        pass
    def infer(self, inputs):
        time.sleep({base_s} + {row_s} * len(inputs["input"]))
        return {{"output": inputs["input"]}}
"""
NEAR = 0.15  # how far the simulation may be off


@dataclass(frozen=True, slots=True)
class Case:
    """A way to plan the two models."""

    title: str
    options: tuple[str, ...]


CASES = {
    "each": Case("a partition each", ("--policy", "gpulet", "--max-partitions", "2")),
    "turns": Case("in turns on one partition", ("--policy", "temporal", "--arrivals", "constant")),
}


@dataclass(frozen=True, slots=True)
class Met:
    """What the requests of one model met; latencies in ms."""

    requests: int
    refused: int
    p50: float
    p99: float
    batches: float = 1.0  # time of its batches by the profile, over what they took


def main() -> None:
    """Prints a line per case, repeat and model; the exit code is 1 where one is off by more than `NEAR`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), help="only this")
    parser.add_argument("--seconds", type=float, default=100.0, help="of load, per case and repeat")
    parser.add_argument("--repeats", type=int, default=1, help="of the same trace")
    parser.add_argument("--load", type=float, default=0.3, help="of one core, by each model")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--sleep", action="store_true", help="models that wait instead of computing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="efserve-live-") as name:
        root = Path(name)
        for model, layers in LAYERS.items():
            (make_sleeper if options.sleep else make_network)(root / "models", model, layers)
        profiling = ("profile", *repository(root), "--output", profiles(root))
        efserve(*profiling, "--grid", "--batches", BATCHES, "--min-time", "2")
        efserve(*profiling, "--pairs", "--batches", "1", "--min-time", "1")
        single_ms = single_latencies_ms(root)
        rates = {model: round(options.load / ms * 1000, 1) for model, ms in single_ms.items()}
        slos = dict.fromkeys(single_ms, round(SLO_OF_BATCH * max(single_ms.values()), 1))
        print(f"a batch of one on a core takes, ms: {single_ms}; req/s: {rates}; SLO, ms: {slos}")
        print(f"{'':26} {'':6} requests  refused  measured p50, p99  simulated p50, p99  ratios     batches  others %")
        trace = write_trace(root / "trace.csv", rates, options.seconds, options.seed)
        far = 0
        for case in [CASES[options.case]] if options.case else CASES.values():
            plan = root / "plan.json"
            asked = [text for m in rates for text in ("--rate", f"{m}={rates[m]}", "--slo", f"{m}={slos[m]}")]
            efserve("plan", *asked, *case.options, "--profiles", profiles(root), "-o", plan)
            short = write_trace(root / "short.csv", rates, WAY_SECONDS, options.seed + 1)
            far += run_case(root, case, read_plan(plan), (short, trace), options.repeats)
    sys.exit(1 if far else 0)


def run_case(root: Path, case: Case, plan: Plan, traces: tuple[Path, Path], repeats: int) -> int:
    """Serves and simulates one plan; how many percentiles are far from what was measured.

    The first trace tells what requests take besides queue and batch, the second is what is compared.
    """
    short, trace = traces
    measured: list[dict[str, Met]] = []
    far = 0
    with serving(root / "models", "--plan", str(root / "plan.json")) as server:
        _, busy = simulate(root, short, 0.0)
        gateway_ms = way_ms(root, plan, server, short, busy)
        print(f"{case.title}: {gateway_ms:.2f} ms besides queue and batch")
        simulated, _ = simulate(root, trace, gateway_ms)
        for _ in range(repeats):
            met, others_pct = serve(root, plan, server, trace)
            measured.append(met)
            for model, mine in met.items():
                wanted = simulated[model]
                ratios = (wanted.p50 / mine.p50, wanted.p99 / mine.p99)
                far += sum(abs(ratio - 1) > NEAR for ratio in ratios)
                print(
                    f"{case.title:26} {model:6} {mine.requests:8} {mine.refused:8} {mine.p50:9.2f} {mine.p99:8.2f} "
                    f"{wanted.p50:10.2f} {wanted.p99:8.2f}   {ratios[0]:.2f} {ratios[1]:.2f}  {mine.batches:7.2f} "
                    f"{others_pct:8.1f}",
                    flush=True,
                )
    for one, other in pairwise(measured):
        for model in one:
            p50, p99 = one[model].p50 / other[model].p50, one[model].p99 / other[model].p99
            print(f"{case.title:26} {model:6} the same trace twice, measured/measured: p50 {p50:.2f}, p99 {p99:.2f}")
    return far


def simulate(root: Path, trace: Path, gateway_ms: float) -> tuple[dict[str, Met], dict[str, float]]:
    """What `efserve simulate` says of each model: what its requests meet, and the busy part of its partition's time."""
    options = ("--profiles", profiles(root), "--trace", trace, "--gateway-ms", round(gateway_ms, 3), "--json")
    (told,) = json.loads(efserve("simulate", root / "plan.json", *options))
    met = {
        model["model"]: Met(model["requests"], model["dropped"], model["p50_ms"], model["p99_ms"])
        for model in told["models"]
    }
    busy = {model: float(part["utilization"]) for part in told["partitions"] for model in part["models"]}
    return met, busy


def serve(root: Path, plan: Plan, server: Server, trace: Path) -> tuple[dict[str, Met], float]:
    """Sends the trace; what each model's requests met, and how much of the machine other processes used, in percent."""
    result = root / "bench.json"
    before = {demand.model: statistics_of(server, demand.model) for demand in plan.demands}
    began = psutil.cpu_times(), busy_s(server)
    efserve("bench", "--url", server.url, "--schedule", trace, "--json", result)
    ended = psutil.cpu_times(), busy_s(server)
    spent, idle = (sum(ended[0]) - sum(began[0]), ended[0].idle + ended[0].iowait - began[0].idle - began[0].iowait)
    others_pct = 100 * max(0.0, spent - idle - (ended[1] - began[1])) / spent
    (level,) = [level.record for level in read_result(result).levels]
    met = {}
    for demand in plan.demands:
        at = [model.name for model in level.models].index(demand.model)
        latency_ms = level.requests.latency_us[level.requests.model == at] / 1000
        refused = sum(len(failures.end_us) for failures in level.failures if failures.model == at)
        p50, p99 = np.percentile(latency_ms, (50, 99)).tolist()
        ratio = batch_ratio(root, plan, demand.model, before[demand.model], statistics_of(server, demand.model))
        met[demand.model] = Met(len(latency_ms), refused, p50, p99, ratio)
    return met, others_pct


def busy_s(server: Server) -> float:
    """Processor time of the server, its workers, and of all commands that have ended."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    own = [process.cpu_times() for process in processes]
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(sum(times.user + times.system for times in own)) + ours.ru_utime + ours.ru_stime


def way_ms(root: Path, plan: Plan, server: Server, trace: Path, busy: dict[str, float]) -> float:
    """What a request takes besides its batch, at these rates: the median of those that found their worker idle.

    Of Poisson arrivals these are the part `1 - busy`, and the fastest. What others lose on their way, while the cores
    are busy, they would have waited for the worker all the same.
    """
    result = root / "way.json"
    efserve("bench", "--url", server.url, "--schedule", trace, "--json", result)
    (level,) = [level.record for level in read_result(result).levels]
    ways_ms = []
    for at, model in enumerate(level.models):
        rows = profiled(root, plan, model.name)
        latency_ms = level.requests.latency_us[level.requests.model == at] / 1000
        known_ms = rows[1].p50_ms + rows[1].roundtrip_ms - rows[1].mean_ms
        ways_ms.append(float(np.percentile(latency_ms, 50 * (1 - busy[model.name]))) - known_ms)
    return max(0.0, sum(ways_ms) / len(ways_ms))


def profiled(root: Path, plan: Plan, model: str) -> dict[int, ProfileRow]:
    """The rows of a model's profile by batch, on the share that the plan gives it."""
    (placement,) = {p.share_pct: p for p in plan.placements for t in p.tenants if t.model == model}.values()
    (engine,) = {tenant.engine for tenant in placement.tenants if tenant.model == model}
    rows = read_profile(profile_path(profiles(root), plan.devices[0].kind, model, engine)).rows
    return {row.batch: row for row in rows if row.share_pct == placement.share_pct}


def statistics_of(server: Server, model: str) -> dict[int, tuple[int, int]]:
    """Batches by their size that a model has run so far, and their ns."""
    with urllib.request.urlopen(f"{server.url}/v2/models/{model}/stats", timeout=10) as answer:
        (told,) = json.load(answer)["model_stats"]
    sizes: list[dict[str, Any]] = told["batch_stats"]
    return {size["batch_size"]: (size["compute_infer"]["count"], size["compute_infer"]["ns"]) for size in sizes}


def batch_ratio(
    root: Path, plan: Plan, model: str, before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]
) -> float:
    """What the batches that the server ran meanwhile take by the profile, over what they took."""
    known = sorted((batch, row.mean_ms) for batch, row in profiled(root, plan, model).items())
    sizes, means_ms = [batch for batch, _ in known], [mean_ms for _, mean_ms in known]
    expected_ms = took_ms = 0.0
    for size, (count, ns) in after.items():
        count_before, ns_before = before.get(size, (0, 0))
        expected_ms += (count - count_before) * float(np.interp(size, sizes, means_ms))
        took_ms += (ns - ns_before) / 1e6
    return expected_ms / took_ms


def make_network(root: Path, name: str, layers: int) -> None:
    """`layers` convolutions, on [batch, 3, SIDE, SIDE]."""
    make_convolutions(root, name, (3, SIDE, SIDE), layers, WIDTH)


def make_sleeper(root: Path, name: str, layers: int) -> None:
    """A model that waits, as long as if it had so many layers to compute."""
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.py").write_text(SLEEPER.format(base_s=0.002 * layers, row_s=0.002 * layers))
    tensor = "data_type: TYPE_FP32 dims: 4"
    (root / name / "config.pbtxt").write_text(
        f'backend: "python" max_batch_size: 4 dynamic_batching {{ }}\ninput {{ name: "input" {tensor} }}\n'
        f'output {{ name: "output" {tensor} }}\n'
    )


def single_latencies_ms(root: Path) -> dict[str, float]:
    """What a batch of one takes on the smallest share, of each model, with the way to the worker and back."""
    (kind,) = kinds(profiles(root))
    found = {}
    for capacity in read_capacities(profiles(root), kind):
        point = min(capacity.points, key=lambda point: (point.share_pct, point.batch))
        found[capacity.model] = round(point.mean_ms, 2)
    return {model: found[model] for model in LAYERS}


def write_trace(path: Path, rates: dict[str, float], seconds: float, seed: int) -> Path:
    """Poisson arrivals of each model, as `SECONDS,MODEL` lines."""
    random = np.random.default_rng(seed)
    times = []
    for model, rate in rates.items():
        gaps = random.exponential(1 / rate, int(seconds * rate * 2) + 20)
        times += [(time, model) for time in np.cumsum(gaps).tolist() if time < seconds]
    path.write_text("".join(f"{time:.6f},{model}\n" for time, model in sorted(times)))
    return path


def profiles(root: Path) -> Path:
    """Where the profiles of this run lie."""
    return root / "profiles"


def repository(root: Path) -> Sequence[str]:
    """The option that names the models."""
    return ("--model-repository", str(root / "models"))


def efserve(*arguments: object) -> str:
    """Runs a command and answers its stdout; ends with what it said where it fails."""
    command = [sys.executable, "-m", "efserve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
