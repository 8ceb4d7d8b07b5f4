"""Ways to fill one partition: a model alone, or several in turn. What the policies choose from.

A recipe carries up to its parts' capacities and keeps every SLO by construction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from efserve.planning.plan import Demand, NoPlan, Point, Problem, Shortfall

UNITS = 100_000  # shares as whole numbers, rounded down: what adds up to 100 % does so in units too


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


def units_of(share_pct: float) -> int:
    """A share as a whole number of units."""
    return int(share_pct / 100 * UNITS + 1e-6)


def points_of(problem: Problem, model: str) -> list[tuple[str, Point]]:
    """Every way to run the model: (engine, point), as far as the memory of one device goes."""
    return [
        (capacity.engine, point)
        for capacity in problem.capacities
        if capacity.model == model
        for point in capacity.points
        if point.memory_mb <= problem.memory_mb
    ]


def alone(problem: Problem, demand: Demand) -> list[Recipe]:
    """The best recipe for the model alone on each share, smallest share first; a larger one always carries more.

    Best is the most throughput with 2 L <= SLO: a request waits for a running batch, then for its own.
    """
    best: dict[int, tuple[str, Point]] = {}
    for engine, point in points_of(problem, demand.model):
        if 2 * point.latency_ms <= demand.slo_ms:
            units = units_of(point.share_pct)
            if units not in best or _merit(point) > _merit(best[units][1]):
                best[units] = (engine, point)
    recipes: list[Recipe] = []
    for units, (engine, point) in sorted(best.items()):
        if not recipes or point.throughput_per_s > recipes[-1].capacity_per_s:
            part = Part(demand.model, engine, point, point.throughput_per_s)
            recipes.append(Recipe(units, point.share_pct, point.memory_mb, point.latency_ms, (part,)))
    return recipes


def choices(problem: Problem) -> list[tuple[Demand, list[Recipe]]]:
    """What each model that is wanted could run on alone. Raises NoPlan where a model has nothing that is fast enough.

    A model that misses its SLO alone misses it in company too: the reason is always true.
    """
    found = [(demand, alone(problem, demand)) for demand in problem.demands if demand.rate_per_s > 0]
    slow = [_too_slow(problem, demand) for demand, recipes in found if not recipes]
    if slow:
        raise NoPlan(slow)
    return found


def _too_slow(problem: Problem, demand: Demand) -> Shortfall:
    points = [point for _, point in points_of(problem, demand.model) if point.throughput_per_s > 0]
    if not points:
        known = any(capacity.model == demand.model for capacity in problem.capacities)
        why = f"no batch fits in {problem.memory_mb:.0f} MB" if known else "there is no profile of it on this device"
        return Shortfall(demand.model, why)
    least = min(points, key=lambda point: (point.latency_ms, point.share_pct))
    nearest_ms = 2 * least.latency_ms
    reason = (
        f"at {demand.slo_ms:g} ms no share is fast enough; best is {nearest_ms:.4g} ms at {least.share_pct:.4g} % "
        f"(a batch of {least.batch} takes {least.latency_ms:.4g} ms and may wait for another)"
    )
    rate = min(demand.rate_per_s, least.throughput_per_s * len(problem.devices) / (1 + problem.headroom_pct / 100))
    return Shortfall(demand.model, reason, Demand(demand.model, rate, nearest_ms))


def _merit(point: Point) -> tuple[float, float, float]:
    return (point.throughput_per_s, -point.memory_mb, -point.latency_ms)


class Turns:
    """Finds recipes in which several models share a partition in time, for given rates."""

    def __init__(self, problem: Problem) -> None:
        self._memory_mb = problem.memory_mb
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
                entry = self._fastest(demand.model, units, rate_per_s * cycle_ms / 1000)
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
        memory_mb = sum(point.memory_mb for _, _, point in chosen)
        if memory_mb > self._memory_mb:
            return None
        parts = tuple(
            Part(demand.model, engine, point, per_cycle / cycle_ms * 1000)
            for (demand, _), (per_cycle, engine, point) in zip(guests, chosen, strict=True)
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

    def _fastest(self, model: str, units: int, requests: float) -> tuple[float, str, Point] | None:
        for entry in self._points.get((model, units), ()):
            if entry[0] >= requests * (1 - 1e-9):
                return entry
        return None


def total_units(recipes: Iterable[Recipe]) -> int:
    """What the recipes take together."""
    return sum(recipe.units for recipe in recipes)
