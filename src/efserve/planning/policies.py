"""The policies by name, and the one way to a plan: the objective, and what would be possible instead."""

from collections.abc import Callable
from dataclasses import replace

from efserve.planning import best, exhaustive, gpulet, static, temporal
from efserve.planning.packing import Shelf, assemble, widest_fit
from efserve.planning.plan import NoPlan, Plan, Problem, Shortfall

POLICIES: dict[str, Callable[[Problem], Plan]] = {
    "best": best.plan,
    "gpulet": gpulet.plan,
    "temporal": temporal.plan,
    "static": static.plan,
    "exhaustive": exhaustive.plan,
}
_SHELVES: dict[str, Callable[[Problem], list[Shelf]]] = {
    "best": best.shelves,
    "gpulet": gpulet.shelves,
    "temporal": temporal.shelves,
    "static": static.shelves,
    "exhaustive": exhaustive.shelves,
}
OBJECTIVES = ("devices", "goodput", "spread")
HALVINGS = 10  # of an interval in which a limit is searched
MOST_FACTOR = 2.0**20


def make_plan(problem: Problem, policy: str) -> Plan:
    """The policy's plan for the problem's objective.

    devices: as few as possible. goodput: all devices, for the largest common factor on the rates that they carry; the
    plan's headroom tells it. spread: the partitions of the fewest devices, evenly over all of them. Raises NoPlan with
    the nearest possible demand of each model concerned.
    """
    try:
        plan = POLICIES[policy](problem)
    except NoPlan as error:
        raise NoPlan(_with_nearest(problem, policy, error)) from None
    if problem.objective == "goodput":
        headroom_pct = (1 + problem.headroom_pct / 100) * most_factor(problem, policy) * 100 - 100
        return POLICIES[policy](replace(problem, headroom_pct=headroom_pct)) if headroom_pct > 0 else plan
    if problem.objective == "spread":
        shelves = _SHELVES[policy](problem)
        even = widest_fit(problem, [recipe for shelf in shelves for recipe in shelf.recipes])
        return assemble(problem, policy, even or shelves)
    return plan


def most_factor(problem: Problem, policy: str) -> float:
    """The largest common factor on all rates for which the policy finds a plan, to about 1 %; 0 where there is none."""

    def holds(factor: float) -> bool:
        demands = tuple(replace(demand, rate_per_s=demand.rate_per_s * factor) for demand in problem.demands)
        try:
            POLICIES[policy](replace(problem, demands=demands, budget_s=problem.budget_s / HALVINGS))
        except NoPlan:
            return False
        return True

    low, high = 0.0, 1.0
    while high < MOST_FACTOR and holds(high):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _with_nearest(problem: Problem, policy: str, error: NoPlan) -> list[Shortfall]:
    """The shortfalls, each with the nearest demand: where devices are short, all rates at the same part of theirs."""
    if all(shortfall.nearest is not None for shortfall in error.shortfalls):
        return list(error.shortfalls)
    demands = {demand.model: demand for demand in problem.demands}
    if any("profile" in shortfall.reason or "MB" in shortfall.reason for shortfall in error.shortfalls):
        return list(error.shortfalls)
    factor = most_factor(problem, policy)
    return [
        replace(
            shortfall,
            nearest=replace(demands[shortfall.model], rate_per_s=demands[shortfall.model].rate_per_s * factor),
        )
        for shortfall in error.shortfalls
    ]
