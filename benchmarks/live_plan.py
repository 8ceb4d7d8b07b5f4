"""Whether a plan does what its simulation says: the same Poisson arrivals, simulated and served.

    python benchmarks/live_plan.py [--seconds 25] [--rounds 1] [--load 0.3] [--sleep]

Makes two convolutional networks (with --sleep: models that only wait, which a busy machine disturbs less), profiles
them on this machine, and plans them twice: each on a partition of its own, and both in turns on the whole machine. Each
plan is served and gets requests at the times of a trace by `efserve bench`; `efserve simulate` gets the same trace.
Prints p50 and p99 of both, their ratios, and the ratio of what batches took in the profile to what they took in the
server: where that is far from 1, the machine was not the same. Needs a quiet machine with two cores or more; takes
about two minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from efserve.planning.plan import Plan, read_plan
from efserve.planning.tables import kinds, read_capacities
from efserve.profiles import profile_path, read_profile
from efserve.records import read_result
from harness import serving

LAYERS = {"short": 4, "long": 9}  # of each network
WIDTH, SIDE = 128, 48  # channels of a layer, pixels
SLO_OF_BATCH = 10.0  # the SLO of both, in batches of one of the slower model on a core
BATCHES = "1,2,4"
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

    name: str
    options: tuple[str, ...]


CASES = (
    Case("a partition each", ("--policy", "gpulet", "--max-partitions", "2")),
    Case("in turns on one partition", ("--policy", "temporal", "--arrivals", "constant")),
)


def main() -> None:
    """Prints a line per case, round and model; the exit code is 1 where one is off by more than `NEAR`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25.0, help="of load, per case and round")
    parser.add_argument("--rounds", type=int, default=1, help="of both cases")
    parser.add_argument("--load", type=float, default=0.3, help="of one core, by each model")
    parser.add_argument("--sleep", action="store_true", help="models that wait instead of computing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="efserve-live-") as name:
        root = Path(name)
        for model, layers in LAYERS.items():
            (make_sleeper if options.sleep else make_network)(root / "models", model, layers)
        efserve(
            "profile", "--grid", "--batches", BATCHES, "--min-time", "1", *repository(root), "--output", profiles(root)
        )
        single_ms = single_latencies_ms(root)
        rates = {model: round(options.load / ms * 1000, 1) for model, ms in single_ms.items()}
        slos = dict.fromkeys(single_ms, round(SLO_OF_BATCH * max(single_ms.values()), 1))
        print(f"a batch of one on a core takes, ms: {single_ms}; req/s: {rates}; SLO, ms: {slos}")
        print(f"{'':26} {'':6} requests  refused  measured p50, p99  simulated p50, p99  ratios     batches")
        far = 0
        for number in range(options.rounds):
            trace = write_trace(root / f"trace-{number}.csv", rates, options.seconds, number)
            for case in CASES:
                plan = root / "plan.json"
                asked = [text for m in rates for text in ("--rate", f"{m}={rates[m]}", "--slo", f"{m}={slos[m]}")]
                efserve("plan", *asked, *case.options, "--profiles", profiles(root), "-o", plan)
                far += run_case(root, case, read_plan(plan), trace)
    sys.exit(1 if far else 0)


def run_case(root: Path, case: Case, plan: Plan, trace: Path) -> int:
    """Serves and simulates one plan; how many percentiles are far from what was measured."""
    result = root / "bench.json"
    with serving(root / "models", "--plan", str(root / "plan.json")) as server:
        gateway_ms = way_ms(root, plan, server.url)
        efserve("bench", "--url", server.url, "--schedule", trace, "--json", result)
        batches = {demand.model: batch_ratio(root, plan, server.url, demand.model) for demand in plan.demands}
    arguments = ("--profiles", profiles(root), "--trace", trace, "--gateway-ms", gateway_ms, "--json")
    printed = efserve("simulate", root / "plan.json", *arguments)
    (simulated,) = json.loads(printed)
    (level,) = [level.record for level in read_result(result).levels]
    far = 0
    for outcome in simulated["models"]:
        at = [model.name for model in level.models].index(outcome["model"])
        latency_ms = level.requests.latency_us[level.requests.model == at] / 1000
        refused = sum(len(failures.end_us) for failures in level.failures if failures.model == at)
        measured = np.percentile(latency_ms, (50, 99)).tolist()
        wanted = (outcome["p50_ms"], outcome["p99_ms"])
        ratios = [there / here for there, here in zip(wanted, measured, strict=True)]
        far += sum(abs(ratio - 1) > NEAR for ratio in ratios)
        print(
            f"{case.name:26} {outcome['model']:6} {len(latency_ms):8} {refused:8} "
            f"{measured[0]:9.2f} {measured[1]:8.2f} {wanted[0]:10.2f} {wanted[1]:8.2f}   "
            f"{ratios[0]:.2f} {ratios[1]:.2f}  {batches[outcome['model']]:.2f}",
            flush=True,
        )
    return far


def way_ms(root: Path, plan: Plan, url: str) -> float:
    """What a request takes besides its batch: one at a time, less what the profile says of a batch of one."""
    placement = plan.placements[0]
    tenant = placement.tenants[0]
    result = root / "way.json"
    efserve("bench", "--url", url, "--model", tenant.model, "--concurrency", "1", "--duration", "3", "--json", result)
    (level,) = [level.record for level in read_result(result).levels]
    together_ms = float(np.median(level.requests.latency_us)) / 1000
    rows = read_profile(profile_path(profiles(root), plan.devices[0].kind, tenant.model, tenant.engine)).rows
    (row,) = [row for row in rows if (row.share_pct, row.batch) == (placement.share_pct, 1)]
    return round(max(0.0, together_ms - row.roundtrip_ms), 3)


def batch_ratio(root: Path, plan: Plan, url: str, model: str) -> float:
    """What the batches that the server ran take by the profile, over what they took."""
    (placement,) = {p.share_pct: p for p in plan.placements for t in p.tenants if t.model == model}.values()
    (engine,) = {tenant.engine for tenant in placement.tenants if tenant.model == model}
    rows = read_profile(profile_path(profiles(root), plan.devices[0].kind, model, engine)).rows
    known = sorted((row.batch, row.mean_ms) for row in rows if row.share_pct == placement.share_pct)
    sizes, means_ms = [batch for batch, _ in known], [mean_ms for _, mean_ms in known]
    with urllib.request.urlopen(f"{url}/v2/models/{model}/stats", timeout=10) as answer:
        (statistics,) = json.load(answer)["model_stats"]
    ran = [(entry["batch_size"], entry["compute_infer"]) for entry in statistics["batch_stats"]]
    expected_ms = sum(compute["count"] * float(np.interp(size, sizes, means_ms)) for size, compute in ran)
    return float(expected_ms / (sum(compute["ns"] for _, compute in ran) / 1e6))


def make_network(root: Path, name: str, layers: int) -> None:
    """`layers` convolutions 3x3 of WIDTH channels on [batch, 3, SIDE, SIDE], then the mean of each channel."""
    random = np.random.default_rng(0)
    nodes, weights, before, channels = [], [], "input", 3
    for at in range(layers):
        weight = (random.standard_normal((WIDTH, channels, 3, 3)) * 0.05).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(helper.make_node("Conv", [before, f"w{at}"], [f"c{at}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        before, channels = f"r{at}", WIDTH
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["output"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", WIDTH])],
        weights,
    )
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    (root / name / "config.pbtxt").write_text("max_batch_size: 4\ndynamic_batching { }\n")


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
