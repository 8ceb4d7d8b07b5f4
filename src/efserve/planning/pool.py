"""Everything that a partition could hold, for searches that choose among it: models alone, and in turns."""

import time
from collections.abc import Iterator, Sequence
from itertools import combinations

from efserve.planning.plan import MAX_TENANTS, Demand
from efserve.planning.recipes import Recipe, Turns

MOST_RECIPES = 6000
MOST_TRIED = 60_000  # combinations of batches


def pool(wanted: Sequence[tuple[Demand, list[Recipe]]], turns: Turns, end_s: float) -> list[Recipe]:
    """Recipes of one model, of two and of three, as many as there is time and room for.

    None that another one of the same models on the same share is better than for each of them.
    """
    found = [recipe for _, recipes in wanted for recipe in recipes]
    demands = [demand for demand, _ in wanted]
    tried = 0
    for count in range(2, MAX_TENANTS + 1):
        for group in combinations(demands, count):
            for units in turns.units:
                if tried > MOST_TRIED or len(found) > MOST_RECIPES or time.monotonic() > end_s:
                    return found
                recipes = list(turns.together(units, group))
                tried += len(recipes)
                found += _undominated(recipes)
    return found


def _undominated(recipes: Sequence[Recipe]) -> Iterator[Recipe]:
    kept: list[tuple[float, ...]] = []
    for recipe in sorted(recipes, key=lambda recipe: [-part.capacity_per_s for part in recipe.parts]):
        carried = tuple(part.capacity_per_s for part in recipe.parts)
        if not any(all(a >= b for a, b in zip(other, carried, strict=True)) for other in kept):
            kept.append(carried)
            yield recipe
