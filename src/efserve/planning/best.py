"""Policy `best`: a search on top of the quick policies, never worse than any of them.

It looks for one device less than the best plan so far, until it finds none or its time is over. A search chooses which
models share partitions in time, lists for each model or group the cheapest sets of partitions that carry it, combines
the lists with a beam, and packs what comes out. Then it takes the emptiest device away and repairs what is left.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import ceil

from efserve.errors import UsageError
from efserve.planning import exhaustive, gpulet, static, temporal
from efserve.planning.exhaustive import groupings
from efserve.planning.packing import Shelf, assemble, best_fit, carried_per_s
from efserve.planning.plan import MAX_TENANTS, Demand, NoPlan, Plan, Problem, Shortfall, count_of
from efserve.planning.pool import pool
from efserve.planning.recipes import UNITS, Recipe, Turns, choices, devices_filled, knee, total_units
from efserve.planning.repair import Repair
from efserve.planning.slack import use_slack

BEAM = 200  # partial combinations that are kept
SETS = 60  # sets of partitions that are kept for a model or group
SLACK_UNITS = UNITS  # how much more than its cheapest set a model may take
MODELS_FOR_ALL = 3  # up to here an exhaustive search follows, of so many steps
STEPS = 30_000
SLACK_PART = 0.2  # of the budget may go into using what is free
SIZES = 6  # of partitions that one model may mix
MOST_SETS = 20_000  # that are looked at for one model
ROUNDS = 3000  # of repair
MOST_REPAIRED = 40  # models, up to which a packing is repaired
FIRST_STEP, LAST_STEP = 0.01, 0.0005  # by which all rates are raised at once
ROUNDING = 0.001  # of a device
FEW_MODELS = 6  # up to here every grouping is tried

Choice = tuple[Recipe, ...]
Group = tuple[int, ...]  # models by their index, those of one shared partition


def plan(problem: Problem) -> Plan:
    """Raises NoPlan where neither the search nor another policy finds a plan in the time given."""
    return assemble(problem, "best", shelves(problem))


def shelves(problem: Problem, rounds: int = ROUNDS) -> list[Shelf]:
    """The devices of that plan; `rounds` of repair are tried for each device less."""
    end_s = time.monotonic() + problem.budget_s
    wanted = choices(problem)
    found: list[Shelf] | None = None
    for policy in (gpulet, temporal, static):
        try:
            other = policy.shelves(problem)
        except NoPlan:
            continue
        if found is None or len(other) < len(found):
            found = other
    search = _Search(problem, wanted, end_s)
    while (fewer := search.find(len(problem.devices) if found is None else len(found) - 1)) is not None:
        found = fewer
    if len(wanted) <= MODELS_FOR_ALL:
        with suppress(UsageError):  # where the case is small enough, be certain
            found = (
                exhaustive.fewest(problem, wanted, len(found) - 1 if found else len(problem.devices), STEPS) or found
            )
    if rounds:
        found = _repaired(problem, wanted, found, rounds, end_s)
    if found is None:
        reason = f"no plan on {count_of(problem.devices)} was found within {problem.budget_s:g} s"
        raise NoPlan([Shortfall(demand.model, reason) for demand, _ in wanted])
    return use_slack(problem, wanted, found, time.monotonic() + SLACK_PART * problem.budget_s)


def _repaired(
    problem: Problem,
    wanted: Sequence[tuple[Demand, list[Recipe]]],
    found: list[Shelf] | None,
    rounds: int,
    end_s: float,
) -> list[Shelf] | None:
    """A packing on fewer devices, from `found` without its emptiest one; `found` where none is found."""
    least = ceil(devices_filled(problem, wanted) - ROUNDING)
    rates = {demand.model: problem.wanted_per_s(demand) for demand, _ in wanted}
    repair: Repair | None = None
    while len(wanted) <= MOST_REPAIRED:
        start = _empty(problem, 0) if found is None else sorted(found, key=lambda shelf: shelf.free_units)[:-1]
        if len(start) < max(1, least):
            break
        repair = repair or Repair(problem, wanted, pool(wanted, Turns(problem), end_s))
        fewer = repair.run(start, rates, rounds, end_s)
        if fewer is None:
            break
        found = [shelf for shelf in fewer if shelf.recipes]
    return found


def raised(problem: Problem, found: list[Shelf]) -> tuple[float, list[Shelf]]:
    """From a packing of all rates on all devices one that carries a larger common factor of them, and that factor."""
    end_s = time.monotonic() + problem.budget_s
    wanted = choices(problem)
    if len(wanted) > MOST_REPAIRED:
        return 1.0, found
    best, factor, step = found + _empty(problem, len(found)), 1.0, FIRST_STEP
    repair = Repair(problem, wanted, pool(wanted, Turns(problem), end_s))
    while step > LAST_STEP and time.monotonic() < end_s:
        rates = {demand.model: problem.wanted_per_s(demand) * factor * (1 + step) for demand, _ in wanted}
        more = repair.run(best, rates, ROUNDS, end_s)
        if more is None:
            step /= 2
        else:
            best = more
            carried = carried_per_s(best)
            factor = min(carried[demand.model] / problem.wanted_per_s(demand) for demand, _ in wanted)
    best = [shelf for shelf in best if shelf.recipes]
    return factor, use_slack(problem, wanted, best, time.monotonic() + SLACK_PART * problem.budget_s)


def _empty(problem: Problem, used: int) -> list[Shelf]:
    return [Shelf(problem.memory_mb) for _ in problem.devices[used:]]


@dataclass(frozen=True, slots=True)
class _State:
    """A combination of choices for the models so far."""

    units: int
    pieces: int
    spread: int  # sum of squares: small pieces pack more easily
    counts: tuple[int, ...]  # how many pieces of each size
    chosen: tuple[Choice, ...]


class _Search:
    """Sets of partitions are listed once; a search for a number of devices combines them."""

    def __init__(self, problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], end_s: float) -> None:
        self._problem = problem
        self._wanted = wanted
        self._end_s = end_s
        self._turns = Turns(problem)
        self._sizes = {
            units: at
            for at, units in enumerate(sorted({*self._turns.units, *(r.units for _, rs in wanted for r in rs)}))
        }
        self._sets: dict[Group, list[Choice]] = {}
        least_mb = min((recipe.memory_mb for _, recipes in wanted for recipe in recipes), default=0.0)
        by_memory = int(problem.memory_mb / least_mb) if least_mb and problem.memory_mb < float("inf") else 0
        limits = [limit for limit in (problem.max_partitions, by_memory) if limit]
        self._most = min(limits) if limits else 0  # partitions on one device; 0: no limit

    def find(self, count: int) -> list[Shelf] | None:
        """A packing on at most `count` devices, or None."""
        if count < 1:
            return None
        for groups in self._structures(count):
            if time.monotonic() > self._end_s:
                return None
            sets = [self._choices(group) for group in groups if time.monotonic() <= self._end_s]
            if (
                len(sets) == len(groups)
                and all(sets)
                and sum(total_units(choice[0]) for choice in sets) <= count * UNITS
            ):
                shelves = self._combine(sets, count)
                if shelves is not None:
                    return shelves
        return None

    def _structures(self, count: int) -> Iterator[list[Group]]:
        """Ways to group the models: all where they are few, else those that save most."""
        models = range(len(self._wanted))
        yield [(model,) for model in models]
        if len(models) <= FEW_MODELS:
            for groups in groupings(list(models), MAX_TENANTS):
                if len(groups) < len(models):
                    yield [tuple(sorted(group)) for group in groups]
            return
        worth = []
        for group in combinations(models, 2):
            if time.monotonic() > self._end_s:
                return
            sets = self._choices(group)
            if sets:
                apart = sum(total_units(self._choices((model,))[0]) for model in group)
                worth.append((total_units(sets[0]) - apart, group))
        worth.sort()
        for first in range(len(worth)):
            pairs: list[Group] = []
            for saved, group in [worth[first], *worth]:
                if saved <= 0 and not any(set(group) & set(other) for other in pairs):
                    pairs.append(group)
                    single: list[Group] = [(m,) for m in models if not any(m in other for other in pairs)]
                    yield [*pairs, *single]

    def _choices(self, group: Group) -> list[Choice]:
        if group not in self._sets:
            found = self._alone(group[0]) if len(group) == 1 else self._shared(group)
            found.sort(key=lambda choice: (total_units(choice), len(choice)))
            limited = [choice for choice in found if total_units(choice) <= total_units(found[0]) + SLACK_UNITS]
            few = sorted(limited, key=lambda choice: (len(choice), total_units(choice)))[:SETS] if self._most else []
            self._sets[group] = limited[:SETS] + [choice for choice in few if choice not in limited[:SETS]]
        return self._sets[group]

    def _alone(self, model: int) -> list[Choice]:
        return [choice for choice, rest in self._own(model) if rest == 0] or [self._plain(model)]

    def _plain(self, model: int) -> Choice:
        """The knee as often as it is filled, and the smallest partition for the rest: a set that always exists."""
        demand, recipes = self._wanted[model]
        best, rate = knee(recipes), self._problem.wanted_per_s(demand)
        count = int(rate / best.capacity_per_s)
        rest = rate - count * best.capacity_per_s
        return (best,) * count + tuple([recipe for recipe in recipes if recipe.capacity_per_s >= rest][: rest > 1e-9])

    def _shared(self, group: Group) -> list[Choice]:
        """Own partitions of each model of the group, and one for what all of them leave."""
        apart = sum(total_units(self._choices((model,))[0]) for model in group)
        rests = []
        for model in group:
            cheapest: dict[int, tuple[Choice, float]] = {}
            for choice, rest in self._own(model):
                units = total_units(choice)
                if rest > 0 and (units not in cheapest or rest < cheapest[units][1]):
                    cheapest[units] = (choice, rest)
            least = max(cheapest, default=0) - UNITS
            rests.append([entry for units, entry in cheapest.items() if units >= least])
        found = []
        for entries in product(*rests):
            if time.monotonic() > self._end_s:
                break
            own = tuple(recipe for choice, _ in entries for recipe in choice)
            room = apart + (UNITS // 4 if self._most else 0) - total_units(own)
            guests = [(self._wanted[m][0], rest) for m, (_, rest) in zip(group, entries, strict=True)]
            if room > 0 and (shared := self._turns.smallest(guests, room)) is not None:
                found.append((*own, shared))
        return found

    def _own(self, model: int) -> list[tuple[Choice, float]]:
        """Sets of partitions of one model's own with the rate that each leaves; the bulk of a high rate at its knee."""
        demand, recipes = self._wanted[model]
        rate = self._problem.wanted_per_s(demand)
        best = knee(recipes)
        bulk = max(0, int((rate - 2 * UNITS / best.units * best.capacity_per_s) / best.capacity_per_s))
        rate -= bulk * best.capacity_per_s
        room = int(rate / best.capacity_per_s * best.units) + SLACK_UNITS
        head = (best,) * bulk
        found = islice(_sets(_some(recipes), rate, room), MOST_SETS)
        return [((*head, *choice), rest) for choice, rest in found]

    def _combine(self, sets: Sequence[Sequence[Choice]], count: int) -> list[Shelf] | None:
        """One choice of each list, so that all of them fit on `count` devices."""
        order = sorted(sets, key=lambda choices: -total_units(choices[0]))
        limit = self._most * count or sum(len(max(s, key=len)) for s in sets)
        rest_units = [0] * (len(order) + 1)
        rest_pieces = [0] * (len(order) + 1)
        for at in range(len(order) - 1, -1, -1):
            rest_units[at] = rest_units[at + 1] + min(total_units(choice) for choice in order[at])
            rest_pieces[at] = rest_pieces[at + 1] + min(len(choice) for choice in order[at])
        states = [_State(0, 0, 0, (0,) * len(self._sizes), ())]
        for at, options in enumerate(order):
            if time.monotonic() > self._end_s:
                return None
            reached: dict[tuple[int, ...], _State] = {}
            for state in states:
                for choice in options:
                    new = self._extended(state, choice)
                    if (
                        new.units + rest_units[at + 1] <= count * UNITS
                        and new.pieces + rest_pieces[at + 1] <= limit
                        and new.counts not in reached
                    ):
                        reached[new.counts] = new
            states = self._kept(list(reached.values()))
        for state in states:
            shelves, left = best_fit(self._problem, [recipe for choice in state.chosen for recipe in choice], count)
            if not left:
                return shelves
        return None

    def _extended(self, state: _State, choice: Choice) -> _State:
        counts = list(state.counts)
        spread = state.spread
        for recipe in choice:
            counts[self._sizes[recipe.units]] += 1
            spread += recipe.units**2
        units = state.units + total_units(choice)
        return _State(units, state.pieces + len(choice), spread, tuple(counts), (*state.chosen, choice))

    def _kept(self, states: list[_State]) -> list[_State]:
        """The best of a beam, half by room and small pieces, half by room and few pieces."""
        if len(states) <= BEAM:
            return sorted(states, key=lambda state: (state.units, state.spread))
        weight = UNITS // self._most if self._most else 0
        small = sorted(states, key=lambda state: (state.units + weight * state.pieces, state.spread))[: BEAM // 2]
        few = sorted(states, key=lambda state: (state.pieces, state.units))[: BEAM // 2]
        return list({state.counts: state for state in (*small, *few)}.values())


def _some(recipes: Sequence[Recipe]) -> list[Recipe]:
    """What sets are made of, largest first: all recipes where they are few, else those that carry most per share."""
    if len(recipes) <= SIZES:
        return list(recipes[::-1])
    by_worth = sorted(recipes[1:-1], key=lambda recipe: -recipe.capacity_per_s / recipe.units)
    return sorted([recipes[0], recipes[-1], *by_worth[: SIZES - 2]], key=lambda recipe: -recipe.units)


def _sets(recipes: Sequence[Recipe], rate: float, room: int) -> Iterator[tuple[Choice, float]]:
    """Every set of recipes of at most `room` with none too many, and the rate that it leaves uncarried."""
    if rate <= 1e-9:
        yield (), 0.0
        return
    yield (), rate
    for at, recipe in enumerate(recipes):
        if recipe.units <= room:
            for choice, rest in _sets(recipes[at:], max(0.0, rate - recipe.capacity_per_s), room - recipe.units):
                yield (recipe, *choice), rest
