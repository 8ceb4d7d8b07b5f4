"""What a packing leaves free, given to the models that are nearest to their limit."""

import time
from collections.abc import Sequence

from efserve.planning.packing import Shelf, carried_per_s
from efserve.planning.plan import Demand, Problem
from efserve.planning.recipes import Recipe


def use_slack(
    problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], shelves: list[Shelf], end_s: float
) -> list[Shelf]:
    """Grows and adds partitions on the devices in use while the most loaded model can gain. Changes `shelves`."""
    capacity = carried_per_s(shelves)
    open_models = {demand.model: (demand, recipes) for demand, recipes in wanted}
    while open_models and time.monotonic() < end_s:
        model = max(open_models, key=lambda model: open_models[model][0].rate_per_s / capacity[model])
        gain = _grow(problem, model, open_models[model][1], shelves)
        if gain > 0:
            capacity[model] += gain
        else:
            del open_models[model]
    return shelves


def _grow(problem: Problem, model: str, recipes: Sequence[Recipe], shelves: Sequence[Shelf]) -> float:
    """Makes the step for a model that gains most per share; how much it gained, 0: nothing is possible."""
    best: tuple[float, float, Shelf, int, Recipe] | None = None
    for shelf in shelves:
        places = [(at, recipe) for at, recipe in enumerate(shelf.recipes) if _is_alone(recipe, model)]
        for new in recipes:
            if new.units > shelf.free_units + max((recipe.units for _, recipe in places), default=0):
                break
            if shelf.fits(new, problem.max_partitions):
                candidate = (new.capacity_per_s / new.units, new.capacity_per_s, shelf, -1, new)
                best = candidate if best is None or candidate[0] > best[0] else best
            for at, old in places:
                gain, more = new.capacity_per_s - old.capacity_per_s, new.units - old.units
                if gain > 0 and 0 < more <= shelf.free_units and new.memory_mb <= shelf.memory_mb + old.memory_mb:
                    candidate = (gain / more, gain, shelf, at, new)
                    best = candidate if best is None or candidate[0] > best[0] else best
    if best is None:
        return 0.0
    _, gain, shelf, at, new = best
    if at >= 0:
        shelf.take(at)
    shelf.put(new)
    return gain


def _is_alone(recipe: Recipe, model: str) -> bool:
    return len(recipe.parts) == 1 and recipe.parts[0].model == model
