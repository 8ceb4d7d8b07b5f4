"""Policy `temporal`: whole devices only, shared in time (squishy bin packing of Nexus, SOSP'19).

A device runs one batch at a time. A model takes whole devices while its rate fills them. The rests, largest occupancy
first, join the fullest device whose cycle still has room for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from efserve.planning.packing import Shelf, assemble
from efserve.planning.plan import Capacity, Demand, NoPlan, Plan, Problem, Shortfall
from efserve.planning.recipes import Recipe, Turns, choices


@dataclass(slots=True)
class _Node:
    """A device that is shared in time."""

    recipe: Recipe
    guests: list[tuple[Demand, float]]

    @property
    def occupancy(self) -> float:
        """The fullest model's part of its capacity."""
        parts = zip(self.guests, self.recipe.parts, strict=True)
        return max(rate / part.capacity_per_s for (_, rate), part in parts)


def plan(problem: Problem) -> Plan:
    """Raises NoPlan where a model is too slow on a whole device or the devices are too few."""
    return assemble(problem, "temporal", shelves(problem))


def shelves(problem: Problem) -> list[Shelf]:
    """The devices of that plan."""
    problem = replace(problem, capacities=tuple(map(_one_at_a_time, problem.capacities)))
    turns = Turns(problem)
    full: list[Recipe] = []
    rests: list[tuple[float, Demand, float, Recipe]] = []
    for demand, recipes in choices(problem):
        recipe = recipes[-1]
        rate = problem.wanted_per_s(demand)
        count = int(rate / recipe.capacity_per_s)
        full += [recipe] * count
        rate -= count * recipe.capacity_per_s
        if rate > 1e-9 * recipe.capacity_per_s:
            rests.append((rate / recipe.capacity_per_s, demand, rate, recipe))
    nodes: list[_Node] = []
    for _, demand, rate, recipe in sorted(rests, key=lambda rest: -rest[0]):
        for node in sorted(nodes, key=lambda node: -node.occupancy):
            joined = _joined(turns, [*node.guests, (demand, rate)])
            if joined is not None:
                node.recipe = joined
                node.guests.append((demand, rate))
                break
        else:
            nodes.append(_Node(recipe, [(demand, rate)]))
    needed = [*full, *(node.recipe for node in nodes)]
    if len(needed) > len(problem.devices):
        late = {part.model: len(needed) for recipe in needed[len(problem.devices) :] for part in recipe.parts}
        there = len(problem.devices)
        verb = "is" if there == 1 else "are"
        raise NoPlan([Shortfall(m, f"whole devices: {n} are needed, {there} {verb} there") for m, n in late.items()])
    return [_whole(problem, recipe) for recipe in needed]


def _joined(turns: Turns, guests: Sequence[tuple[Demand, float]]) -> Recipe | None:
    """The guests in turn on as much of a device as tables tell of; some tables end below 100 %."""
    found = (turns.recipe(units, guests) for units in reversed(turns.units))
    return next((recipe for recipe in found if recipe is not None), None)


def _one_at_a_time(capacity: Capacity) -> Capacity:
    """Without processes side by side, which would be sharing in space."""
    return replace(capacity, points=tuple(point for point in capacity.points if point.processes == 1))


def _whole(problem: Problem, recipe: Recipe) -> Shelf:
    shelf = Shelf(problem.memory_mb)
    shelf.put(recipe)
    return shelf
