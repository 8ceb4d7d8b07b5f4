"""A yardstick for `best` on mixes of five models: an exact integer program over every recipe of up to three models.

    python benchmarks/planning_exact.py DATA [--gpus 2] [--step 1] [--limit 10]

For each mix that `best` refuses, HiGHS (scipy) looks for whole numbers of recipes that carry all rates and fit on the
GPUs. Its space is wider than the policies': a model may share several partitions. Needs scipy.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import LinearConstraint, milp

from efserve.planning.plan import Capacity, NoPlan, Point, Problem
from efserve.planning.policies import POLICIES
from planning import all_mixes, gpus, limited, mix_demands, read_capacities

SEVENTHS = (1, 2, 3, 4, 7)
Recipe = tuple[int, dict[str, float]]  # share in sevenths, what it carries of each model


def main() -> None:
    """Prints how many of the refused mixes have a plan, have none, or stay open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the profiles")
    parser.add_argument("--gpus", type=int, default=2, help="GPUs that the mixes are planned on")
    parser.add_argument("--step", type=int, default=1, help="take every STEP-th mix only")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one integer program")
    options = parser.parse_args()
    capacities = limited(read_capacities(options.data), 1)
    counts = {"planned by best": 0, "missed by best": 0, "impossible": 0, "open": 0}
    began = time.monotonic()
    mixes = all_mixes()[:: options.step]
    for number, mix in enumerate(mixes):
        problem = Problem(mix_demands(capacities, mix), capacities, gpus(options.gpus), budget_s=1.0)
        try:
            POLICIES["best"](problem)
            counts["planned by best"] += 1
        except NoPlan:
            counts[exact(problem, options.limit)] += 1
        if number % 50 == 0:
            print(f"  {number} of {len(mixes)} mixes, {time.monotonic() - began:.0f} s, {counts}", flush=True)
    print(counts)


def exact(problem: Problem, limit_s: float) -> str:
    """Whether whole numbers of recipes exist that carry all rates on the problem's devices."""
    found = list(recipes(problem))
    layouts = [c for c in itertools.product(range(8), range(4), range(3), range(2), range(2)) if _fills(c)]
    size = len(found) + len(layouts)
    rows, low = [], []
    for demand in problem.demands:  # what is carried
        rows.append([carried.get(demand.model, 0.0) / demand.rate_per_s for _, carried in found] + [0.0] * len(layouts))
        low.append(1.0)
    for at, share in enumerate(SEVENTHS):  # partitions of a size: no more than the layouts of the devices offer
        rows.append([-1.0 if units == share else 0.0 for units, _ in found] + [float(c[at]) for c in layouts])
        low.append(0.0)
    rows.append([0.0] * len(found) + [-1.0] * len(layouts))
    low.append(-float(len(problem.devices)))
    cost = np.array([0.0] * len(found) + [1.0] * len(layouts))
    result = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), np.array(low)),
        integrality=np.ones(size),
        options={"time_limit": limit_s},
    )
    if result.x is not None:
        return "missed by best"
    return "impossible" if result.status == 2 else "open"


def _fills(counts: Sequence[int]) -> bool:
    """Whether partitions of these sizes fill a device and no smallest one could be added."""
    return sum(count * share for count, share in zip(counts, SEVENTHS, strict=True)) == 7


def recipes(problem: Problem) -> Iterator[Recipe]:
    """Every way to fill a partition, but those that another one is better than in every respect."""
    points = {demand.model: _by_share(problem.capacities, demand.model) for demand in problem.demands}
    for share in SEVENTHS:
        for count in (1, 2, 3):
            for guests in itertools.combinations(problem.demands, count):
                found: list[tuple[float, ...]] = []
                for batches in itertools.product(*(points[guest.model].get(share, []) for guest in guests)):
                    cycle_ms = sum(point.latency_ms for point in batches)
                    if all(cycle_ms + p.latency_ms <= g.slo_ms for p, g in zip(batches, guests, strict=True)):
                        found.append(tuple(_carries(point, cycle_ms) for point in batches))
                for carried in _undominated(found):
                    yield share, {guest.model: rate for guest, rate in zip(guests, carried, strict=True)}


def _by_share(capacities: Sequence[Capacity], model: str) -> dict[int, list[Point]]:
    (points,) = (capacity.points for capacity in capacities if capacity.model == model)
    return {share: [p for p in points if round(p.share_pct * 7 / 100) == share] for share in SEVENTHS}


def _carries(point: Point, cycle_ms: float) -> float:
    if cycle_ms == point.latency_ms:
        return point.throughput_per_s
    return min(point.batch, point.throughput_per_s * point.latency_ms / 1000) / cycle_ms * 1000


def _undominated(found: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    kept: list[tuple[float, ...]] = []
    for carried in sorted(found, reverse=True):
        if not any(all(a >= b for a, b in zip(other, carried, strict=True)) for other in kept):
            kept.append(carried)
    return kept


if __name__ == "__main__":
    main()
