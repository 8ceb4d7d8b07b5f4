"""The policies by name, and the one way to a plan: the objective, and what would be possible instead."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import sqrt

from efserve.planning import best, exhaustive, gpulet, static, temporal
from efserve.planning.packing import Shelf, assemble, widest_fit
from efserve.planning.plan import Demand, NoPlan, Plan, Problem, Shortfall, count_of

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
HALVINGS = 10  # of an interval in which a limit is searched
MOST_FACTOR = 2.0**20
LESS_ROOM = "there is no room for it beside the others at their rates"
MOST_APART = 30  # models, up to which it is told which to leave out
LONGEST = 16  # times the least SLO, up to which a longer one is looked for


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
        factor, shelves = most(problem, policy)
        headroom_pct = (1 + problem.headroom_pct / 100) * factor * 100 - 100
        return assemble(replace(problem, headroom_pct=headroom_pct), policy, shelves) if factor > 1 else plan
    if problem.objective == "spread":
        shelves = _SHELVES[policy](problem)
        even = widest_fit(problem, [recipe for shelf in shelves for recipe in shelf.recipes])
        return assemble(problem, policy, even or shelves)
    return plan


def most(problem: Problem, policy: str) -> tuple[float, list[Shelf]]:
    """The largest common factor on all rates that the policy's plan carries, to about 0.1 %, and its devices.

    0 and none where there is no plan. `best` searches on from where the factor is the largest that it plans at once.
    """
    factor, shelves = _largest(problem, policy)
    if policy == "best" and factor:
        more, shelves = best.raised(_at(problem, factor), shelves)
        factor *= more
    return factor, shelves


def most_factor(problem: Problem, policy: str) -> float:
    """The largest common factor on all rates for which the policy finds a plan at once, to about 0.1 %; 0: none."""
    return _largest(problem, policy)[0]


def _at(problem: Problem, factor: float) -> Problem:
    demands = tuple(replace(demand, rate_per_s=demand.rate_per_s * factor) for demand in problem.demands)
    return replace(problem, demands=demands)


def _largest(problem: Problem, policy: str) -> tuple[float, list[Shelf]]:
    packed: dict[float, list[Shelf]] = {0.0: []}

    def holds(factor: float) -> bool:
        case = replace(_at(problem, factor), budget_s=problem.budget_s / HALVINGS)
        try:
            packed[factor] = best.shelves(case, rounds=0) if policy == "best" else _SHELVES[policy](case)
        except NoPlan:
            return False
        return True

    if holds(1.0):
        low, high = 1.0, 2.0
        while high < MOST_FACTOR and holds(high):
            low, high = high, 2 * high
    else:
        low, high = 1 / MOST_FACTOR, 1.0
        if not holds(low):
            return 0.0, []
        while high > 2 * low:
            middle = sqrt(low * high)
            low, high = (middle, high) if holds(middle) else (low, middle)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, packed[low]


def _with_nearest(problem: Problem, policy: str, error: NoPlan) -> list[Shortfall]:
    """The shortfalls, each with the nearest demand: all of them together, beside the demands of others, have a plan.

    Where an SLO is too short, the shortest that the model's rate has on these devices; where devices are short then,
    all rates at the same part of theirs, and a shortfall for each model. Where the models cannot run beside one another
    at any rate, all SLOs are longer too, 2, 4, 8 or 16 times; where that does not help, some models are left out.
    """
    short = {shortfall.model: shortfall.nearest for shortfall in error.shortfalls}
    if any(
        nearest is None and ("profile" in shortfall.reason or "MB" in shortfall.reason)
        for shortfall, nearest in zip(error.shortfalls, short.values(), strict=True)
    ):
        return list(error.shortfalls)
    longer = tuple(
        replace(demand, slo_ms=_shortest_slo_ms(problem, replace(demand, slo_ms=nearest.slo_ms)))
        if (nearest := short.get(demand.model)) is not None
        else demand
        for demand in problem.demands
    )
    factor = min(1.0, most_factor(replace(problem, demands=longer), policy))
    times, own = 1.0, longer
    while not factor and times < LONGEST:  # they cannot run beside one another at any rate: later, perhaps
        times *= 2
        later = tuple(replace(demand, slo_ms=demand.slo_ms * times) for demand in longer)
        factor = min(1.0, most_factor(replace(problem, demands=later), policy))
        longer = later if factor else longer
    nearest_of = {demand.model: replace(demand, rate_per_s=demand.rate_per_s * factor) for demand in longer}
    if not factor:
        return _apart(problem, policy, own) or [replace(shortfall, nearest=None) for shortfall in error.shortfalls]
    changed = factor < 1 or times > 1
    others = [demand.model for demand in problem.demands if changed and demand.model not in short]
    return [
        *(replace(shortfall, nearest=nearest_of[shortfall.model]) for shortfall in error.shortfalls),
        *(Shortfall(model, LESS_ROOM, nearest_of[model]) for model in others),
    ]


def _apart(problem: Problem, policy: str, demands: tuple[Demand, ...]) -> list[Shortfall]:
    """Which models to leave out where they cannot run beside one another, how many devices would hold all of them at
    some rate, and the nearest demand of the others; nothing where that would take too long or none may stay.
    """

    def holds(some: tuple[Demand, ...], count: int) -> bool:
        more = tuple(replace(problem.devices[0], name=str(at)) for at in range(count))
        case = _at(replace(problem, demands=some, devices=more, budget_s=problem.budget_s / HALVINGS), 1 / MOST_FACTOR)
        try:
            _SHELVES[policy](case)
        except NoPlan:
            return False
        return True

    there = len(problem.devices)
    kept: tuple[Demand, ...] = ()
    for demand in demands if len(demands) <= MOST_APART else ():
        if holds((*kept, demand), there):
            kept = (*kept, demand)
    factor = min(1.0, most_factor(replace(problem, demands=kept), policy)) if kept else 0.0
    if not factor:
        return []
    out = [demand for demand in demands if demand not in kept]
    needed = next((n for n in range(there + 1, there + len(out) + 1) if holds(demands, n)), 0)
    enough = f"; {needed} devices hold all of them at some rate" if needed else ""
    beside = ", ".join(demand.model for demand in kept)
    reason = (
        f"there is no room for it beside {beside} on {count_of(problem.devices)} at any rate, nor at up to {LONGEST} "
        f"times the SLOs: leave it out{enough}"
    )
    room = [Shortfall(d.model, LESS_ROOM, replace(d, rate_per_s=d.rate_per_s * factor)) for d in kept if factor < 1]
    return [*(Shortfall(demand.model, reason) for demand in out), *room]


def _shortest_slo_ms(problem: Problem, demand: Demand) -> float:
    """An SLO, about 2 % from the shortest, at which the model's rate has a plan if it is alone on the devices.

    `demand` has the shortest that any rate has; that again where no SLO helps, for the rate is too high.
    """

    def holds(slo_ms: float) -> bool:
        case = replace(problem, demands=(replace(demand, slo_ms=slo_ms),))
        with suppress(NoPlan):
            gpulet.plan(case)
            return True
        return False

    low_ms, high_ms = demand.slo_ms, demand.slo_ms
    while not holds(high_ms):
        low_ms, high_ms = high_ms, 1.5 * high_ms
        if high_ms > LONGEST * demand.slo_ms:
            return demand.slo_ms
    while high_ms > 1.02 * low_ms:
        middle_ms = (low_ms + high_ms) / 2
        low_ms, high_ms = (low_ms, middle_ms) if holds(middle_ms) else (middle_ms, high_ms)
    return high_ms
