"""Policy `gpulet`: elastic partitioning (gpu-lets, ATC'22) without a limit of two partitions per device.

Each model takes partitions at the knee of throughput over share while its rate exceeds one, then the smallest share for
the rest. What finds no room shares a partition in time with another rest, or is split into the gaps of the devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations_with_replacement, product

from efserve.planning.gaps import completed, without_spare
from efserve.planning.packing import Shelf, assemble, best_fit
from efserve.planning.plan import MAX_TENANTS, Demand, NoPlan, Plan, Problem, Shortfall, count_of
from efserve.planning.recipes import UNITS, Recipe, Turns, choices, knee, total_units

MOST_FILLED = 3  # partitions per device, up to which sets that fill one are tried
MOST_PARTNERS = 64  # with which a rest tries to share a partition


@dataclass(frozen=True, slots=True)
class _Rest:
    """What models want that does not fill a partition: a recipe, and the rates that it must carry."""

    recipe: Recipe
    guests: tuple[tuple[Demand, float], ...]


class _Joints:
    """Partitions that rests share in time; each is looked for once, however often the same rests meet."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._turns: Turns | None = None
        self._found: dict[tuple[tuple[tuple[Demand, float], ...], int], Recipe | None] = {}

    def smallest(self, guests: tuple[tuple[Demand, float], ...], below: int) -> Recipe | None:
        """As `Turns.smallest`."""
        key = (guests, below)
        if key not in self._found:
            self._turns = self._turns or Turns(self._problem)
            self._found[key] = self._turns.smallest(guests, below)
        return self._found[key]


def plan(problem: Problem) -> Plan:
    """The packing with the fewest devices, over knees that are not below a smallest share. Raises NoPlan."""
    return assemble(problem, "gpulet", shelves(problem))


def shelves(problem: Problem) -> list[Shelf]:
    """The devices of that plan."""
    wanted = choices(problem)
    best: list[Shelf] | None = None
    left: list[Recipe] = []
    sizes = sorted({recipe.units for _, recipes in wanted for recipe in recipes})
    fillings: list[dict[str, tuple[Recipe, ...]]] = [{}]
    if 0 < problem.max_partitions <= MOST_FILLED:
        fillings.append({d.model: _filling(recipes, problem.max_partitions) for d, recipes in wanted})
    joints = _Joints(problem)
    for least, filling in product(sizes, fillings):
        packed, rest = _pack(problem, wanted, least, filling, joints)
        complete = completed(problem, wanted, packed) if rest else packed
        if complete is not None:
            fewest = without_spare(problem, wanted, complete)
            best = fewest if best is None or len(fewest) < len(best) else best
        left = rest if not left or (rest and total_units(rest) < total_units(left)) else left
    if best is None:
        models = sorted({part.model for recipe in left for part in recipe.parts})
        raise NoPlan([Shortfall(model, f"no room is left on {count_of(problem.devices)}") for model in models])
    return best


def _pack(
    problem: Problem,
    wanted: Sequence[tuple[Demand, list[Recipe]]],
    least: int,
    filling: Mapping[str, tuple[Recipe, ...]],
    joints: "_Joints",
) -> tuple[list[Shelf], list[Recipe]]:
    """Partitions of at least `least` units but for rests; what `filling` has fills whole devices with a model first."""
    full: list[Recipe] = []
    rests: list[_Rest] = []
    for demand, recipes in wanted:
        allowed = [recipe for recipe in recipes if recipe.units >= least] or recipes[-1:]
        full_one = knee(allowed)
        rate = problem.wanted_per_s(demand)
        for pieces in (filling.get(demand.model, ()), (full_one,)):
            if not pieces:
                continue
            capacity_per_s = sum(recipe.capacity_per_s for recipe in pieces)
            count = int(rate / capacity_per_s)
            full += pieces * count
            rate -= count * capacity_per_s
        if rate > 1e-9 * full_one.capacity_per_s:
            smallest = next(recipe for recipe in recipes if recipe.capacity_per_s >= rate)
            rests.append(_Rest(smallest, ((demand, rate),)))
    count = len(problem.devices)
    shelves, left = best_fit(problem, [*full, *(rest.recipe for rest in rests)], count)
    while left:
        merged = _merge(problem, joints, rests, left)
        if merged is None:
            break
        rests = merged
        shelves, left = best_fit(problem, [*full, *(rest.recipe for rest in rests)], count)
    return shelves, left


def _filling(recipes: Sequence[Recipe], most: int) -> tuple[Recipe, ...]:
    """At most `most` partitions of one device that carry most of a model: where few are allowed, none may be small."""
    sets = chain.from_iterable(combinations_with_replacement(recipes, count) for count in range(1, most + 1))
    return max(
        (pieces for pieces in sets if total_units(pieces) <= UNITS),
        key=lambda pieces: sum(recipe.capacity_per_s for recipe in pieces),
    )


def _merge(problem: Problem, joints: "_Joints", rests: Sequence[_Rest], left: Sequence[Recipe]) -> list[_Rest] | None:
    """A rest that found no room joined with the other with which it saves most; None when none can share."""
    homeless = [at for at, rest in enumerate(rests) if any(rest.recipe is recipe for recipe in left)]
    for first in homeless:
        lonely = rests[first]
        others = sorted((at for at in range(len(rests)) if at != first), key=lambda at: rests[at].recipe.units)
        best: tuple[int, int, _Rest] | None = None
        for second in others[:MOST_PARTNERS]:
            guests = (*lonely.guests, *rests[second].guests)
            if len(guests) > MAX_TENANTS:
                continue
            together = lonely.recipe.units + rests[second].recipe.units
            # Where partitions are counted, one less is worth something even if it saves no share.
            recipe = joints.smallest(guests, together if problem.max_partitions else together - 1)
            if recipe is not None and (best is None or together - recipe.units > best[0]):
                best = (together - recipe.units, second, _Rest(recipe, guests))
        if best is not None:
            _, second, joined = best
            return [rest for at, rest in enumerate(rests) if at not in (first, second)] + [joined]
    return None
