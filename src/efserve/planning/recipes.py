"""Ways to fill one partition: a model alone, or several in turn. What the policies choose from.

A recipe carries up to its parts' capacities and keeps every SLO by construction.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import erfc, exp, sqrt

from efserve.planning.plan import Demand, NoPlan, Point, Problem, Shortfall

UNITS = 100_000  # shares as whole numbers, rounded down: what adds up to 100 % does so in units too

LATE_PART = 0.01  # of the requests may be late by chance
CAUTION = 0.5  # of the time to spare counts
MOST_GROWTH = 0.95


@dataclass(frozen=True, slots=True)
class Part:
    """One model of a recipe."""

    model: str
    engine: str
    point: Point
    capacity_per_s: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """A partition of `units`, its models, and the time in which each of them has its turn once."""

    units: int
    share_pct: float
    memory_mb: float
    cycle_ms: float
    parts: tuple[Part, ...]

    @property
    def capacity_per_s(self) -> float:
        """Of a recipe of one model."""
        return self.parts[0].capacity_per_s


def safe_load(batch: int, rounds: float, growth: float = 0.0) -> float:
    """How much of its throughput a server of batches may be given under Poisson arrivals, 0..1.

    `rounds` is the SLO in durations of a batch, 2 or more. The requests that find no room in the next batch are a
    random walk with a drift of (1 - load) batches per round, reflected at 0; its mean and tail (Siegmund, Sequential
    Analysis, 1985, X) give the part of late requests. Where a part `growth` of the batch's time grows with its rows,
    short queues make short batches, and the walk leaves 0 the more rarely. docs/scheduling.md compares it with
    simulations.
    """
    return _safe_load(batch, int(max(0.0, rounds - 2) * 50) / 50, int(growth * 20) / 20 * (1 - 1 / sqrt(batch)))


@cache
def _safe_load(batch: int, spare: float, growth: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(20):
        load = (low + high) / 2
        exponent = 2 * (1 - load) / load * (CAUTION * spare * batch + 0.583 * sqrt(load * batch))
        full = (1 - load) * sqrt(batch / load / 2)  # how far a full batch is from a usual one
        rarer = erfc(full * sqrt((1 + load * growth) / (1 - growth))) / (erfc(full) or 1.0)
        if rarer * exp(-exponent) / (2 * (1 - load) * batch) <= LATE_PART:
            low = load
        else:
            high = load
    return low


def growths(problem: Problem, model: str) -> dict[tuple[str, Point], float]:
    """Of each way to run the model the part of its batch's time that surely grows with the rows, 0 to MOST_GROWTH.

    A straight line to no rows at all, such that no smaller batch that was measured takes longer than it says.
    """
    rows: dict[tuple[str, int, int], list[Point]] = {}
    for engine, point in points_of(problem, model):
        rows.setdefault((engine, units_of(point.share_pct), point.processes), []).append(point)
    found = {}
    for (engine, _, _), points in rows.items():
        points.sort(key=lambda point: point.batch)
        for at, point in enumerate(points):
            fewer = [(1, points[0].latency_ms), *((other.batch, other.latency_ms) for other in points[:at])]
            per_row = [(point.latency_ms - ms) / (point.batch - batch) for batch, ms in fewer if batch < point.batch]
            part = min(per_row, default=0.0) * point.batch / point.latency_ms
            found[engine, point] = min(MOST_GROWTH, max(0.0, part))
    return found


def pooled(batch: int, rate_per_s: float, cycle_ms: float) -> int:
    """The batch of all partitions of a model together, which serve one queue, if all had this cycle."""
    return max(batch, int(rate_per_s * cycle_ms / 1000))


def units_of(share_pct: float) -> int:
    """A share as a whole number of units."""
    return int(share_pct / 100 * UNITS + 1e-6)


def points_of(problem: Problem, model: str) -> list[tuple[str, Point]]:
    """Every way to run the model: (engine, point), as far as the memory of one device goes.

    A worker takes what waits, so a smaller batch than the planned one may run: a point is here as slow as the slowest
    batch up to its own, and carries no more than if each of its batches took that long.
    """
    return [
        (capacity.engine, point)
        for capacity in problem.capacities
        if capacity.model == model
        for point in _rising(capacity.points)
        if point.memory_mb <= problem.memory_mb
    ]


def _rising(points: Sequence[Point]) -> list[Point]:
    """The points, none of them faster than a smaller batch on the same share in as many processes."""
    slowest: dict[tuple[int, int], tuple[float, float]] = {}
    found = []
    for point in sorted(points, key=lambda point: point.batch):
        row, own_ms = (units_of(point.share_pct), point.processes), point.mean_ms or point.latency_ms
        late_ms, mean_ms = slowest.get(row, (0.0, 0.0))
        if late_ms > point.latency_ms or mean_ms > own_ms:
            late_ms, mean_ms = max(late_ms, point.latency_ms), max(mean_ms, own_ms)
            found.append(replace(point, latency_ms=late_ms, throughput_per_s=point.throughput_per_s * own_ms / mean_ms))
        else:
            late_ms, mean_ms = point.latency_ms, own_ms
            found.append(point)
        slowest[row] = late_ms, mean_ms
    return found


def row_ms(problem: Problem, part: Part) -> float:
    """How long the fewest rows that are known take on the part's share; 0 where that is the batch itself."""
    fewer = [
        (point.batch, point.latency_ms)
        for engine, point in points_of(problem, part.model)
        if engine == part.engine
        and (units_of(point.share_pct), point.processes) == (units_of(part.point.share_pct), part.point.processes)
    ]
    batch, latency_ms = min(fewer)
    return min(latency_ms, part.point.latency_ms) if batch == 1 else 0.0


def alone(problem: Problem, demand: Demand) -> list[Recipe]:
    """The best recipe for the model alone on each share, smallest share first; a larger one always carries more.

    Best is the most throughput with 2 L <= SLO: a request waits for a running batch, then for its own.
    """
    best: dict[int, tuple[float, str, Point]] = {}
    growth = growths(problem, demand.model) if problem.arrivals == "poisson" else {}
    for engine, point in points_of(problem, demand.model):
        if 2 * point.latency_ms <= demand.slo_ms:
            units = units_of(point.share_pct)
            carries_per_s = point.throughput_per_s
            if problem.arrivals == "poisson":
                batch = pooled(point.batch * point.processes, problem.wanted_per_s(demand), point.latency_ms)
                carries_per_s *= safe_load(batch, demand.slo_ms / point.latency_ms, growth[engine, point])
            if units not in best or (carries_per_s, -point.memory_mb, -point.latency_ms) > _merit(*best[units]):
                best[units] = (carries_per_s, engine, point)
    recipes: list[Recipe] = []
    for units, (carries_per_s, engine, point) in sorted(best.items()):
        if not recipes or carries_per_s > recipes[-1].capacity_per_s:
            part = Part(demand.model, engine, point, carries_per_s)
            recipes.append(Recipe(units, point.share_pct, point.memory_mb, point.latency_ms, (part,)))
    return recipes


def choices(problem: Problem) -> list[tuple[Demand, list[Recipe]]]:
    """What each model that is wanted could run on alone. Raises NoPlan where that already tells that no plan exists.

    A model that misses its SLO alone misses it in company too, and carries no more per share in company than alone: the
    reasons are always true.
    """
    found = [(demand, alone(problem, demand)) for demand in problem.demands if demand.rate_per_s > 0]
    slow = [_too_slow(problem, demand) for demand, recipes in found if not recipes]
    if slow:
        raise NoPlan(slow)
    needed = devices_filled(problem, found)
    if needed > len(problem.devices) + 0.001:
        there = len(problem.devices)
        verb = "is" if there == 1 else "are"
        reason = f"the rates fill {needed:.2f} devices even at the best throughput per share; {there} {verb} there"
        raise NoPlan([Shortfall(demand.model, reason) for demand, _ in found])
    return found


def devices_filled(problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]]) -> float:
    """How many devices the rates fill at each model's best throughput per share: no plan needs fewer."""
    return sum(
        problem.wanted_per_s(demand) / knee(recipes).capacity_per_s * knee(recipes).share_pct / 100
        for demand, recipes in wanted
    )


def knee(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe with the most throughput per share."""
    return max(recipes, key=lambda recipe: recipe.capacity_per_s / recipe.units)


def _too_slow(problem: Problem, demand: Demand) -> Shortfall:
    points = [point for _, point in points_of(problem, demand.model) if point.throughput_per_s > 0]
    if not points:
        known = any(capacity.model == demand.model for capacity in problem.capacities)
        if known:
            return Shortfall(demand.model, f"no batch fits in {problem.memory_mb:.0f} MB")
        how = f"`efserve profile --grid --model {demand.model}` makes one there"
        return Shortfall(demand.model, f"there is no profile of it on this kind of device; {how}")
    least = min(points, key=lambda point: (point.latency_ms, point.share_pct))
    nearest_ms = 2 * least.latency_ms
    reason = (
        f"at {demand.slo_ms:g} ms no share is fast enough; best is {nearest_ms:.4g} ms at {least.share_pct:.4g} % "
        f"(a batch of {least.batch} takes {least.latency_ms:.4g} ms and may wait for another)"
    )
    rate = min(demand.rate_per_s, least.throughput_per_s * len(problem.devices) / (1 + problem.headroom_pct / 100))
    return Shortfall(demand.model, reason, Demand(demand.model, rate, nearest_ms))


def _merit(carries_per_s: float, engine: str, point: Point) -> tuple[float, float, float]:
    return (carries_per_s, -point.memory_mb, -point.latency_ms)


class Turns:
    """Finds recipes in which several models share a partition in time, for given rates."""

    def __init__(self, problem: Problem) -> None:
        self._memory_mb = problem.memory_mb
        self._poisson = problem.arrivals == "poisson"
        self._rates = {demand.model: problem.wanted_per_s(demand) for demand in problem.demands}
        self._points: dict[tuple[str, int], list[tuple[float, str, Point]]] = {}
        for demand in problem.demands:
            for engine, point in points_of(problem, demand.model):
                if point.processes == 1 and point.throughput_per_s > 0:
                    key = (demand.model, units_of(point.share_pct))
                    per_cycle = min(point.batch, point.throughput_per_s * point.latency_ms / 1000)
                    self._points.setdefault(key, []).append((per_cycle, engine, point))
        for points in self._points.values():
            points.sort(key=lambda entry: (entry[2].latency_ms, -entry[0]))
        self.units = sorted({units for _, units in self._points})

    def recipe(self, units: int, guests: Sequence[tuple[Demand, float]]) -> Recipe | None:
        """The recipe with the shortest cycle for (demand, rate) on a share, or None when there is none.

        A cycle d needs of each model the fastest batch that gathers rate x d requests; such batches need a cycle of
        their own sum. Both grow with d, so growing d from nothing ends at the least cycle that is enough.
        """
        cycle_ms = 0.0
        while True:
            chosen = []
            for demand, rate_per_s in guests:
                entry = self._fastest(demand, units, rate_per_s, cycle_ms)
                if entry is None:
                    return None
                chosen.append(entry)
            total_ms = sum(point.latency_ms for _, _, point in chosen)
            for (demand, _), (_, _, point) in zip(guests, chosen, strict=True):
                if total_ms + point.latency_ms > demand.slo_ms:
                    return None
            if total_ms <= cycle_ms * (1 + 1e-12):
                break
            cycle_ms = total_ms
        return self._of(units, [demand for demand, _ in guests], chosen, cycle_ms)

    def together(self, units: int, demands: Sequence[Demand]) -> Iterator[Recipe]:
        """A recipe for each choice of batches of the models on a share, in the shortest cycle."""
        entries = [self._points.get((demand.model, units), ()) for demand in demands]
        for chosen in product(*entries):
            cycle_ms = sum(point.latency_ms for _, _, point in chosen)
            if all(
                cycle_ms + point.latency_ms <= demand.slo_ms
                for demand, (_, _, point) in zip(demands, chosen, strict=True)
            ):
                recipe = self._of(units, demands, chosen, cycle_ms)
                if recipe is not None:
                    yield recipe

    def _of(
        self, units: int, demands: Sequence[Demand], chosen: Sequence[tuple[float, str, Point]], cycle_ms: float
    ) -> Recipe | None:
        """The recipe of these batches in this cycle, None where the memory is too small."""
        memory_mb = sum(point.memory_mb for _, _, point in chosen)
        if memory_mb > self._memory_mb:
            return None
        parts = tuple(
            Part(demand.model, engine, point, self._gathers(demand, entry, cycle_ms) / cycle_ms * 1000)
            for demand, entry in zip(demands, chosen, strict=True)
            for _, engine, point in [entry]
        )
        return Recipe(units, chosen[0][2].share_pct, memory_mb, cycle_ms, parts)

    def smallest(self, guests: Sequence[tuple[Demand, float]], below: int = UNITS) -> Recipe | None:
        """The recipe on the smallest share, of at most `below` units, that carries the guests."""
        for units in self.units:
            if units > below:
                break
            if (recipe := self.recipe(units, guests)) is not None:
                return recipe
        return None

    def _fastest(
        self, demand: Demand, units: int, rate_per_s: float, cycle_ms: float
    ) -> tuple[float, str, Point] | None:
        for entry in self._points.get((demand.model, units), ()):
            if self._gathers(demand, entry, cycle_ms) >= rate_per_s * cycle_ms / 1000 * (1 - 1e-9):
                return entry
        return None

    def _gathers(self, demand: Demand, entry: tuple[float, str, Point], cycle_ms: float) -> float:
        """How many requests a batch may be counted on for in each cycle."""
        per_cycle, _, point = entry
        if not self._poisson or not cycle_ms:
            return per_cycle
        batch = pooled(point.batch, self._rates[demand.model], cycle_ms)
        return per_cycle * safe_load(batch, 1 + (demand.slo_ms - point.latency_ms) / cycle_ms)


def total_units(recipes: Iterable[Recipe]) -> int:
    """What the recipes take together."""
    return sum(recipe.units for recipe in recipes)
