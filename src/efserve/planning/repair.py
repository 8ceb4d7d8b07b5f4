"""Repairs packings that do not carry everything: takes a few partitions out and fills the room anew, again and again.

Deterministic but for the time: the moves are drawn from a fixed seed.
"""

import random
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from efserve.planning.packing import Shelf, carried_per_s
from efserve.planning.plan import Demand, Problem
from efserve.planning.recipes import UNITS, Recipe, knee

MOST_TAKEN = 4  # partitions that are taken out at once
WORSE_UNITS = UNITS * 0.01  # by which a packing may get worse, on average of those that do
LUCK = 0.2  # of what a partition is worth
LEAST = 1e-9  # of a rate; what is less is rounding


class Repair:
    """Looks for a packing that carries given rates on given devices.

    `pool` is what partitions may hold.
    """

    def __init__(self, problem: Problem, wanted: Sequence[tuple[Demand, list[Recipe]]], pool: Sequence[Recipe]) -> None:
        self._most = problem.max_partitions
        self._at = {demand.model: at for at, (demand, _) in enumerate(wanted)}
        self._pool = sorted(pool, key=lambda recipe: recipe.units)
        self._units = np.array([recipe.units for recipe in self._pool])
        knees = [knee(recipes) for _, recipes in wanted]
        self._worth = np.array([best.units / best.capacity_per_s for best in knees])  # [models], units per request/s
        self._carries = np.zeros((len(self._pool), len(wanted)))  # [pool, models]
        for row, recipe in zip(self._carries, self._pool, strict=True):
            for part in recipe.parts:
                row[self._at[part.model]] = part.capacity_per_s
        self._draws = random.Random(1)
        self._luck = np.random.default_rng(1)

    def run(
        self, shelves: Sequence[Shelf], rates: Mapping[str, float], rounds: int, end_s: float
    ) -> list[Shelf] | None:
        """A packing that carries `rates`, found within so many rounds from `shelves`; None: not found."""
        wanted = np.array([rates[model] for model in self._at])
        now = [shelf.copy() for shelf in shelves]
        cost = self._fill(now, wanted)
        for _ in range(rounds):
            if not cost:
                return now
            if time.monotonic() > end_s:
                break
            trial = self._thinned(now)
            new_cost = self._fill(trial, wanted)
            if new_cost < cost + self._draws.expovariate(1 / WORSE_UNITS):
                now, cost = trial, new_cost
        return None if cost else now

    def _thinned(self, shelves: Sequence[Shelf]) -> list[Shelf]:
        """Copies without a few partitions of one device or two."""
        thin = [shelf.copy() for shelf in shelves]
        filled = [shelf for shelf in thin if shelf.recipes]
        some = self._draws.sample(filled, min(len(filled), self._draws.randint(1, 2)))
        for _ in range(self._draws.randint(1, MOST_TAKEN)):
            places = [(shelf, at) for shelf in some for at in range(len(shelf.recipes))]
            if places:
                shelf, at = self._draws.choice(places)
                shelf.take(at)
        return thin

    def _fill(self, shelves: Sequence[Shelf], wanted: npt.NDArray[np.float64]) -> float:
        """Fills gaps with what carries most of what is missing per share, give or take some luck.

        Returns what is still missing, as the units that it would take at the best.
        """
        carried = carried_per_s(shelves)
        missing = wanted - [carried[model] for model in self._at]
        missing[missing < LEAST * wanted] = 0.0
        while missing.any():
            widest = max((s.free_units for s in shelves if not self._most or len(s.recipes) < self._most), default=0)
            count = int(np.searchsorted(self._units, widest, side="right"))
            if not count:
                break
            scores = np.minimum(self._carries[:count], missing) @ self._worth / self._units[:count]
            scores *= 1 - LUCK * self._luck.random(count)
            found = self._home(shelves, scores)
            if found is None:
                break
            best, home = found
            home.put(self._pool[best])
            missing = np.maximum(0.0, missing - self._carries[best])
            missing[missing < LEAST * wanted] = 0.0
        return float(missing @ self._worth)

    def _home(self, shelves: Sequence[Shelf], scores: npt.NDArray[np.float64]) -> tuple[int, Shelf] | None:
        """The recipe with the highest score that some device has room for, and the one with the smallest gap for it."""
        while scores[best := int(scores.argmax())] > 0:
            homes = [shelf for shelf in shelves if shelf.fits(self._pool[best], self._most)]
            if homes:
                return best, min(homes, key=lambda shelf: shelf.free_units)
            scores[best] = 0.0
        return None
