"""The policies on public profiles of an A100: GPUs, planning time, the checker's verdict; beside the figures to reach.

    python benchmarks/planning.py DATA [--part scenarios|replay|large|mixes|held] [--step 1]

DATA is the folder `prof_data` of ParvaGPU (SC'24, MIT): a CSV file per model with instance size in sevenths of the GPU,
batch, processes, throughput per process (0: out of memory) and latency in seconds.
"""

import argparse
import csv
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efserve.planning.check import check
from efserve.planning.packing import assemble
from efserve.planning.plan import Capacity, Demand, Device, NoPlan, Plan, Point, Problem
from efserve.planning.policies import POLICIES, most
from efserve.planning.recipes import alone, knee
from efserve.simulator.events import simulate
from efserve.simulator.job import SimulateConfig, highest_factor, planned_arrivals

KIND = "a100-80gb"
# Rates (req/s) and SLOs (ms) of the scenarios S1-S6.
SCENARIOS = """
bert        19/6434   19/6434   46/4294  69/4294  843/2153  1264/6434
densenet121 353/183   353/183   728/126  1091/126 2228/69   3342/183
densenet169 -         308/216.5 633/150  949/150  3507/83.5 5260/216.5
densenet201 -         276/168.5 493/119  739/119  1513/69.5 2269/168.5
inceptionv3 460/418.5 460/418.5 1051/282 1576/282 3815/145.5 5722/418.5
mobilenetv2 677/167   677/167   1546/113 2318/113 5009/59   7513/167
resnet101   -         393/211.5 760/144  1140/144 1874/76.5 2811/211.5
resnet152   -         281/212.5 543/146  815/146  1340/79.5 2010/212.5
resnet50    829/204.5 829/204.5 1463/138 2195/138 2796/71.5 4196/204.5
vgg16       -         410/399.5 780/227  1169/227 1773/114.5 2659/399.5
vgg19       354/396.5 354/396.5 673/265  1010/265 1531/133.5 2296/396.5
"""
# Name, most processes per partition, most partitions per GPU, the GPUs to reach in S1-S6.
VARIANTS = (
    ("one process per partition", 1, 0, (2, 3, 5, 7, 13, 17)),
    ("several processes per partition", 5, 0, (2, 3, 5, 7, 12, 15)),
    ("one process, at most 2 partitions per GPU", 1, 2, (3, 6, 6, 9, 17, 20)),
)
PARTS = ("scenarios", "replay", "large", "mixes", "held")
MIX_MODELS = ("mobilenetv2", "resnet50", "inceptionv3", "vgg16", "densenet201")
MIX_LEVELS = (0, 200, 400, 600)
SMALL_MODELS = (
    "bert",
    "densenet121",
    "densenet169",
    "resnet50",
    "mobilenetv2",
)  # a whole GPU gives most of them little
# Of the part `held`: a name, the models, the scenario of their SLOs, most processes per partition but for `temporal`.
HELD = (
    ("mixes, SLOs of S4, one process", MIX_MODELS, 3, 1),
    ("mixes, SLOs of S4, several processes", MIX_MODELS, 3, 5),
    ("mixes, SLOs of S5, one process", MIX_MODELS, 4, 1),
    ("mixes, SLOs of S5, several processes", MIX_MODELS, 4, 5),
    ("with bert, SLOs of S4, several processes", SMALL_MODELS, 3, 5),
)


def main() -> None:
    """Prints the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the profiles")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--step", type=int, default=1, help="take every STEP-th mix only")
    parser.add_argument("--gpus", type=int, default=2, help="GPUs that the mixes are planned on")
    parser.add_argument("--held-step", type=int, default=128, help="in the part `held`, take every such mix only")
    options = parser.parse_args()
    capacities = read_capacities(options.data)
    parts = options.part or PARTS
    if "scenarios" in parts:
        scenarios(capacities)
    if "replay" in parts:
        replay(limited(capacities, 1))
    if "large" in parts:
        large(capacities)
    if "mixes" in parts:
        mixes(limited(capacities, 1), options.gpus, options.step)
    if "held" in parts:
        for title, models, number, processes in HELD:
            held(title, capacities, _Mixes(models, number, processes, options.gpus), options.held_step)


def read_capacities(folder: Path) -> tuple[Capacity, ...]:
    """The published tables as capacities."""
    return tuple(Capacity(path.stem, "tensorrt", tuple(_points(path))) for path in sorted(folder.glob("*.csv")))


def _points(path: Path) -> list[Point]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Point(
            share_pct=int(row["Mig instance"]) * 100 / 7,
            batch=int(row["Batch size"]),
            processes=int(row["Workload Number"]),
            throughput_per_s=float(row["Throughput"]) * int(row["Workload Number"]),
            latency_ms=float(row["Latency"]) * 1000,
        )
        for row in rows
        if float(row["Throughput"]) > 0
    ]


def limited(capacities: Sequence[Capacity], processes: int) -> tuple[Capacity, ...]:
    """The capacities with at most so many processes per partition."""
    return tuple(
        replace(capacity, points=tuple(point for point in capacity.points if point.processes <= processes))
        for capacity in capacities
    )


def scenario(number: int) -> tuple[Demand, ...]:
    """The demands of S1 (0) to S6 (5)."""
    demands = []
    for line in SCENARIOS.strip().splitlines():
        model, *cells = line.split()
        if cells[number] != "-":
            rate, slo = cells[number].split("/")
            demands.append(Demand(model, float(rate), float(slo)))
    return tuple(demands)


def gpus(count: int) -> tuple[Device, ...]:
    """So many devices of the profiles' kind."""
    return tuple(Device(f"gpu{at}", KIND) for at in range(count))


def timed(make: Callable[[Problem], Plan], problem: Problem) -> tuple[Plan | None, float]:
    """The plan, None where there is none, and the seconds that it took."""
    began = time.monotonic()
    try:
        plan = make(problem)
    except NoPlan:
        return None, time.monotonic() - began
    return plan, time.monotonic() - began


def scenarios(capacities: Sequence[Capacity]) -> None:
    """Policy x scenario; a plan is only counted when the checker finds nothing."""
    for title, processes, most_partitions, goals in VARIANTS:
        allowed = limited(capacities, processes)
        print(f"\n{title}: GPUs (seconds)\n{'':12}" + "".join(f"{f'S{n + 1}':>12}" for n in range(6)))
        print(f"{'to reach':12}" + "".join(f"{goal:12}" for goal in goals))
        for name in ("best", "gpulet", "temporal", "static"):
            cells = []
            for number in range(6):
                problem = Problem(scenario(number), allowed, gpus(80), most_partitions, budget_s=20.0)
                plan, took_s = timed(POLICIES[name], problem)
                wrong = check(plan, allowed) if plan else ["no plan"]
                cells.append(
                    f"{len(plan.used_devices)} ({took_s:.1f})" if plan and not wrong else "BROKEN" if plan else "-"
                )
            print(f"{name:12}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def replay(capacities: tuple[Capacity, ...]) -> None:
    """Plans for Poisson arrivals, one process per partition: GPUs, and the part of requests late in the simulator."""
    print(f"\nplanned for Poisson arrivals: GPUs (late % of the worst model)\n{'':12}", end="")
    print("".join(f"{f'S{n + 1}':>12}" for n in range(6)))
    for name in ("best", "gpulet", "temporal"):
        cells = []
        for number in range(6):
            problem = Problem(scenario(number), capacities, gpus(80), budget_s=20.0, arrivals="poisson")
            plan, _ = timed(POLICIES[name], problem)
            if plan is None or check(plan, capacities):
                cells.append("-")
                continue
            arrival = planned_arrivals(plan, SimulateConfig(()), 1.0)
            late = max(1 - model.within_slo / model.requests for model in simulate(plan, capacities, arrival).models)
            cells.append(f"{len(plan.used_devices)} ({100 * late:.2f})")
        print(f"{name:12}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def large(capacities: Sequence[Capacity]) -> None:
    """1,000 models on 500 GPUs: the scenarios' models under other names, at a twentieth to a fifth of their rates."""
    demands, copies = [], []
    by_name = {capacity.model: capacity for capacity in limited(capacities, 1)}
    for at in range(1000):
        original = scenario(at % 6)[at // 6 % len(scenario(at % 6))]
        name = f"{original.model}-{at}"
        demands.append(Demand(name, original.rate_per_s * (1 + at % 4) / 8, original.slo_ms))
        copies.append(replace(by_name[original.model], model=name))
    problem = Problem(tuple(demands), tuple(copies), gpus(500))
    plan, took_s = timed(POLICIES["gpulet"], problem)
    wrong = check(plan, copies) if plan else ["no plan"]
    used, verdict = len(plan.used_devices) if plan else 0, wrong[0] if wrong else "clean"
    print(f"\n1,000 models on 500 GPUs by gpulet: {used} GPUs in {took_s:.1f} s, checker: {verdict}")


def all_mixes() -> list[tuple[int, ...]]:
    """Every mix of levels but that of nothing: 1,023 of them."""
    return [mix for mix in itertools.product(MIX_LEVELS, repeat=len(MIX_MODELS)) if any(mix)]


def mix_demands(
    capacities: Sequence[Capacity], mix: Sequence[int], models: Sequence[str] = MIX_MODELS, number: int = 3
) -> tuple[Demand, ...]:
    """The demands of a mix: level 600 is two thirds of what a whole GPU carries; SLOs are those of S4, or another."""
    of = {capacity.model: capacity for capacity in capacities}
    slos = {demand.model: demand.slo_ms for demand in scenario(number)}
    return tuple(
        Demand(model, level / 600 * _unit(of[model], slos[model]), slos[model])
        for model, level in zip(models, mix, strict=True)
        if level
    )


def mixes(capacities: tuple[Capacity, ...], count: int, step: int) -> None:
    """1,023 mixes of five models: which are planned on a fixed number of GPUs."""
    everything = all_mixes()[::step]
    planned = dict.fromkeys(("best", "gpulet", "temporal", "static"), 0)
    lost, broken, factors = 0, 0, {"best": 0.0, "temporal": 0.0}
    began = time.monotonic()
    for number, mix in enumerate(everything):
        problem = Problem(mix_demands(capacities, mix), capacities, gpus(count), budget_s=1.0)
        plans = {name: timed(POLICIES[name], problem)[0] for name in planned}
        for name, plan in plans.items():
            planned[name] += plan is not None
            broken += bool(plan and check(plan, capacities))
        lost += plans["best"] is None and any(plans.values())
        if number % 20 == 0:
            for name in factors:
                factors[name] += most(problem, name)[0]
        if number % 100 == 0:
            print(f"  {number} of {len(everything)} mixes, {time.monotonic() - began:.0f} s", flush=True)
    print(
        f"\n{len(everything)} mixes on {count} GPUs, planned by: {planned}; broken plans {broken}; lost by best {lost}"
    )
    print(f"highest total rate planned, best / temporal: {factors['best'] / factors['temporal']:.2f}")


@dataclass(frozen=True, slots=True)
class _Mixes:
    """Which mixes the part `held` looks at, and on what."""

    models: Sequence[str]
    scenario: int
    processes: int
    gpus: int


def held(title: str, capacities: Sequence[Capacity], wanted: _Mixes, step: int) -> None:
    """The highest total rate that holds at 99 % within SLO in the simulator, best and gpulet over temporal.

    And the bound for any plan with the same rules, over temporal: every model at its best throughput per share, and no
    share lost.
    """
    one, several = limited(capacities, 1), limited(capacities, wanted.processes)
    ratios: dict[str, list[float]] = {"best": [], "gpulet": [], "bound": []}
    for mix in all_mixes()[17::step]:
        demands = mix_demands(one, mix, wanted.models, wanted.scenario)
        problem = Problem(demands, several, gpus(wanted.gpus), budget_s=2.0)
        whole = sum(demand.rate_per_s for demand in demands)
        temporal = highest_held(problem, "temporal", several)
        for name in ("best", "gpulet"):
            ratios[name].append(highest_held(problem, name, several) / temporal)
        shares = sum(
            d.rate_per_s / knee(alone(problem, d)).capacity_per_s * knee(alone(problem, d)).share_pct for d in demands
        )
        ratios["bound"].append(whole * wanted.gpus * 100 / shares / temporal)
    means = ", ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in ratios.items())
    print(f"held at 99 % within SLO, over temporal, mean of {len(ratios['best'])} {title}: {means}", flush=True)


def highest_held(problem: Problem, policy: str, capacities: Sequence[Capacity]) -> float:
    """The highest total rate (req/s) that the policy's plan holds, whichever arrivals it is made for."""
    held = 0.0
    for arrivals in ("poisson", "constant"):
        case = replace(problem, arrivals=arrivals)
        factor, shelves = most(case, policy)
        demands = tuple(replace(demand, rate_per_s=demand.rate_per_s * factor) for demand in case.demands)
        plan = assemble(replace(case, demands=demands), policy, shelves)
        total = sum(demand.rate_per_s for demand in demands)
        if factor and not check(plan, capacities):
            held = max(held, total * highest_factor(plan, capacities, SimulateConfig((), requests=20_000)))
    return held


def _unit(capacity: Capacity, slo_ms: float) -> float:
    """Two thirds of what one whole GPU carries of the model within its SLO."""
    return max(p.throughput_per_s for p in capacity.points if 2 * p.latency_ms <= slo_ms) * 2 / 3


if __name__ == "__main__":
    main()
