"""Policy `exhaustive`: the yardstick for small cases. Tries every plan of the space below and takes the fewest devices.

The space: each model has partitions of its own, and a rest that they do not carry joins one partition that it shares in
time with at most two other models' rests.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NoReturn, TypeVar

from efserve.errors import UsageError
from efserve.planning.packing import Shelf, assemble, exact_fit
from efserve.planning.plan import MAX_TENANTS, Demand, NoPlan, Plan, Problem, Shortfall, count_of
from efserve.planning.recipes import UNITS, Recipe, Turns, choices, total_units

STEPS = 2_000_000  # of the search, beyond which a case is not small
MOST_PARTITIONS = 40  # of one model, beyond which neither

T = TypeVar("T")
Option = tuple[tuple[Recipe, ...], float]  # partitions of one model, and the rate that they leave


def plan(problem: Problem) -> Plan:
    """Raises NoPlan where no plan of the space exists, UsageError where the case is too large to try everything."""
    return assemble(problem, "exhaustive", shelves(problem))


def shelves(problem: Problem) -> list[Shelf]:
    """The devices of that plan."""
    wanted = choices(problem)
    found = fewest(problem, wanted, len(problem.devices), STEPS)
    if found is None:
        reason = f"no plan on {count_of(problem.devices)} exists"
        raise NoPlan([Shortfall(demand.model, reason) for demand, _ in wanted])
    return found


def fewest(
    problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], most: int, steps: int
) -> list[Shelf] | None:
    """The fewest devices of at most `most`, or None. Raises UsageError where so many steps do not try everything."""
    for count in range(1, most + 1):
        found = _Search(problem, wanted, count, steps).find()
        if found is not None:
            return found
    return None


class _Search:
    """Depth first over the models, then over the ways to group their rests."""

    def __init__(self, problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], count: int, steps: int) -> None:
        self._problem = problem
        self._models_wanted = len(wanted)
        self._count = count
        self._turns = Turns(problem)
        self._steps = steps
        if any(count * UNITS // recipes[0].units > MOST_PARTITIONS for _, recipes in wanted):
            self._give_up()
        self._options = [
            (demand, list(self._own(recipes, problem.wanted_per_s(demand), count * UNITS)))
            for demand, recipes in wanted
        ]

    def find(self) -> list[Shelf] | None:
        """A packing on the given number of devices."""
        return self._models(0, (), ())

    def _step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            self._give_up()

    def _give_up(self) -> NoReturn:
        models, devices = self._models_wanted, count_of(self._problem.devices[: self._count])
        raise UsageError(f"{models} models on {devices} are too many to try everything: use policy best")

    def _own(self, recipes: Sequence[Recipe], rate: float, room: int) -> Iterator[Option]:
        """Every choice of partitions of one model's own that has none too many."""
        self._step()
        if rate <= 1e-9:
            yield (), 0.0
            return
        yield (), rate
        for at, recipe in enumerate(recipes):
            if recipe.units <= room:
                left = rate - recipe.capacity_per_s
                for own, rest in self._own(recipes[at:], max(0.0, left), room - recipe.units):
                    yield (recipe, *own), rest

    def _models(
        self, at: int, taken: tuple[Recipe, ...], rests: tuple[tuple[Demand, float], ...]
    ) -> list[Shelf] | None:
        self._step()
        if at == len(self._options):
            return self._groups(taken, rests)
        demand, options = self._options[at]
        for own, rest in options:
            together = (*taken, *own)
            if total_units(together) <= self._count * UNITS:
                found = self._models(at + 1, together, (*rests, (demand, rest)) if rest else rests)
                if found is not None:
                    return found
        return None

    def _groups(self, taken: tuple[Recipe, ...], rests: Sequence[tuple[Demand, float]]) -> list[Shelf] | None:
        for groups in groupings(rests, MAX_TENANTS):
            self._step()
            if any(len(group) < 2 for group in groups):
                continue  # a rest alone on a partition is a partition of its own
            ways = [[r for units in self._turns.units if (r := self._turns.recipe(units, group))] for group in groups]
            for shared in product(*ways):
                self._step()
                if total_units((*taken, *shared)) <= self._count * UNITS:
                    shelves = exact_fit(self._problem, (*taken, *shared), self._count, self._step)
                    if shelves is not None:
                        return shelves
        return None


def groupings(items: Sequence[T], largest: int) -> Iterator[list[list[T]]]:
    """Every way to divide the items into groups of at most `largest`."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in groupings(rest, largest):
        yield [[first], *groups]
        for at, group in enumerate(groups):
            if len(group) < largest:
                yield [*groups[:at], [first, *group], *groups[at + 1 :]]
