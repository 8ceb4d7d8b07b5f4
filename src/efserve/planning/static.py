"""Policy `static`: each model has devices of its own, as many as its rate needs."""

from math import ceil

from efserve.planning.packing import Shelf, assemble
from efserve.planning.plan import NoPlan, Plan, Problem, Shortfall
from efserve.planning.recipes import choices


def plan(problem: Problem) -> Plan:
    """Raises NoPlan where a model is too slow on its largest share or the devices are too few."""
    return assemble(problem, "static", shelves(problem))


def shelves(problem: Problem) -> list[Shelf]:
    """The devices of that plan."""
    filled: list[Shelf] = []
    for demand, recipes in choices(problem):
        for _ in range(ceil(problem.wanted_per_s(demand) / recipes[-1].capacity_per_s - 1e-9)):
            shelf = Shelf(problem.memory_mb)
            shelf.put(recipes[-1])
            filled.append(shelf)
        if len(filled) > len(problem.devices):
            reason = f"a device per model: {len(filled)} are needed up to here, {len(problem.devices)} are there"
            raise NoPlan([Shortfall(demand.model, reason)])
    return filled
