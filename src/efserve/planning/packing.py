"""Puts recipes on devices, and writes down as a plan what was placed."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from efserve.planning.plan import Placement, Plan, Problem, Tenant
from efserve.planning.recipes import UNITS, Recipe, row_ms


class Shelf:
    """The free part of one device while it is filled."""

    __slots__ = ("free_units", "memory_mb", "recipes")

    def __init__(self, memory_mb: float) -> None:
        self.free_units = UNITS
        self.memory_mb = memory_mb
        self.recipes: list[Recipe] = []

    def fits(self, recipe: Recipe, max_partitions: int) -> bool:
        """Whether there is room for one more partition like this."""
        return (
            recipe.units <= self.free_units
            and recipe.memory_mb <= self.memory_mb
            and (not max_partitions or len(self.recipes) < max_partitions)
        )

    def put(self, recipe: Recipe) -> None:
        """Take the room."""
        self.free_units -= recipe.units
        self.memory_mb -= recipe.memory_mb
        self.recipes.append(recipe)

    def take(self, at: int) -> None:
        """Give the room of one partition back."""
        recipe = self.recipes.pop(at)
        self.free_units += recipe.units
        self.memory_mb += recipe.memory_mb

    def copy(self) -> "Shelf":
        """Another that is filled alike."""
        other = Shelf(self.memory_mb)
        other.free_units, other.recipes = self.free_units, list(self.recipes)
        return other


def carried_per_s(shelves: Iterable[Shelf]) -> dict[str, float]:
    """What the devices carry of each model."""
    carried: dict[str, float] = defaultdict(float)
    for shelf in shelves:
        for recipe in shelf.recipes:
            for part in recipe.parts:
                carried[part.model] += part.capacity_per_s
    return carried


def best_fit(problem: Problem, recipes: Sequence[Recipe], count: int) -> tuple[list[Shelf], list[Recipe]]:
    """Largest first, each on the device with the least free share that has room. Also what found none."""
    shelves: list[Shelf] = []
    rest = []
    for recipe in sorted(recipes, key=lambda recipe: (-recipe.units, -recipe.memory_mb)):
        home: Shelf | None = None
        for shelf in shelves:
            if shelf.fits(recipe, problem.max_partitions) and (home is None or shelf.free_units < home.free_units):
                home = shelf
                if home.free_units == recipe.units:
                    break
        if home is None:
            if len(shelves) == count:
                rest.append(recipe)
                continue
            home = Shelf(problem.memory_mb)
            shelves.append(home)
        home.put(recipe)
    return shelves, rest


def widest_fit(problem: Problem, recipes: Sequence[Recipe]) -> list[Shelf] | None:
    """Largest first, each on the device with the most free share: evenly over all. None when one finds no room."""
    shelves = [Shelf(problem.memory_mb) for _ in problem.devices]
    for recipe in sorted(recipes, key=lambda recipe: (-recipe.units, -recipe.memory_mb)):
        homes = [shelf for shelf in shelves if shelf.fits(recipe, problem.max_partitions)]
        if not homes:
            return None
        max(homes, key=lambda shelf: shelf.free_units).put(recipe)
    return shelves


def exact_fit(problem: Problem, recipes: Sequence[Recipe], count: int, step: Callable[[], None]) -> list[Shelf] | None:
    """The recipes on `count` devices, or None when that is impossible. Tries everything, and calls `step` each time."""
    order = sorted(recipes, key=lambda recipe: (-recipe.units, -recipe.memory_mb))
    shelves = [Shelf(problem.memory_mb) for _ in range(count)]

    def place(at: int) -> bool:
        step()
        if at == len(order):
            return True
        seen = set()
        for shelf in shelves:
            state = (shelf.free_units, round(shelf.memory_mb, 3), len(shelf.recipes))
            if state in seen or not shelf.fits(order[at], problem.max_partitions):
                continue
            seen.add(state)
            before = (shelf.free_units, shelf.memory_mb)
            shelf.put(order[at])
            if place(at + 1):
                return True
            shelf.recipes.pop()
            shelf.free_units, shelf.memory_mb = before
        return False

    return shelves if place(0) else None


def assemble(problem: Problem, policy: str, shelves: Sequence[Shelf]) -> Plan:
    """The plan of what stands on the shelves; each model's rate is split by the capacities of its partitions."""
    total = carried_per_s(shelves)
    rates = {demand.model: demand.rate_per_s for demand in problem.demands}
    placements = []
    for device, shelf in zip(problem.devices, shelves, strict=False):
        for recipe in shelf.recipes:
            tenants = tuple(
                Tenant(
                    model=part.model,
                    engine=part.engine,
                    batch=part.point.batch,
                    processes=part.point.processes,
                    rate_per_s=rates[part.model] * part.capacity_per_s / total[part.model],
                    capacity_per_s=part.capacity_per_s,
                    latency_ms=part.point.latency_ms,
                    worst_ms=recipe.cycle_ms + part.point.latency_ms,
                    row_ms=row_ms(problem, part),
                )
                for part in recipe.parts
            )
            placements.append(Placement(device.name, recipe.share_pct, recipe.cycle_ms, tenants))
    return Plan(
        policy, problem.devices, problem.demands, tuple(placements), problem.max_partitions, problem.headroom_pct
    )
