"""What finds no room as planned, in smaller partitions in the gaps of the devices; and devices that are spared so."""

from collections.abc import Mapping, Sequence

from efserve.planning.packing import Shelf, carried_per_s
from efserve.planning.plan import Demand, Problem
from efserve.planning.recipes import Recipe, total_units

ENOUGH = 1 + 1e-9  # relative, for rounding


def without_spare(
    problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], shelves: Sequence[Shelf]
) -> list[Shelf]:
    """The packing without its emptiest device, and again, as long as the others' gaps carry what is missing then."""
    kept = list(shelves)
    while len(kept) > 1:
        spare = min(kept, key=lambda shelf: total_units(shelf.recipes))
        fewer = completed(problem, wanted, [shelf for shelf in kept if shelf is not spare])
        if fewer is None:
            break
        kept = fewer
    return kept


def completed(
    problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], shelves: Sequence[Shelf]
) -> list[Shelf] | None:
    """The devices with partitions in their gaps for all that they do not carry yet; None where the gaps are too few."""
    rates = {demand.model: problem.wanted_per_s(demand) for demand, _ in wanted}
    recipes = {demand.model: own for demand, own in wanted}
    copies = [shelf.copy() for shelf in shelves]
    return copies if _filled(problem, recipes, _missing(rates, copies), copies) else None


def _missing(rates: Mapping[str, float], shelves: Sequence[Shelf]) -> dict[str, float]:
    """What the devices do not carry of each model."""
    carried = carried_per_s(shelves)
    return {model: rate - carried[model] for model, rate in rates.items() if rate > carried[model] * ENOUGH}


def _filled(
    problem: Problem, recipes: Mapping[str, list[Recipe]], missing: dict[str, float], shelves: Sequence[Shelf]
) -> bool:
    """Puts partitions for all that is missing into the gaps, the model that wants the largest first; False: no room."""
    while missing:
        need = {model: _piece(recipes[model], rate) for model, rate in missing.items()}
        model = max(need, key=lambda model: need[model].units)
        piece, home = _placed(problem, recipes[model], need[model], shelves)
        if home is None:
            return False
        home.put(piece)
        missing[model] -= piece.capacity_per_s
        if missing[model] <= 1e-9 * piece.capacity_per_s:
            del missing[model]
    return True


def _piece(recipes: Sequence[Recipe], rate: float) -> Recipe:
    """The smallest partition that carries the rate, or the largest."""
    return next((recipe for recipe in recipes if recipe.capacity_per_s * ENOUGH >= rate), recipes[-1])


def _placed(
    problem: Problem, recipes: Sequence[Recipe], wanted: Recipe, shelves: Sequence[Shelf]
) -> tuple[Recipe, Shelf | None]:
    """The largest partition up to the wanted one for which there is a gap, and the smallest gap for it."""
    for recipe in reversed(recipes):
        if recipe.units <= wanted.units:
            homes = [shelf for shelf in shelves if shelf.fits(recipe, problem.max_partitions)]
            if homes:
                return recipe, min(homes, key=lambda shelf: shelf.free_units)
    return wanted, None
