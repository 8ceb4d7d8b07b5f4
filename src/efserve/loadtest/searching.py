"""The search that the options ask for, driven level by level; `search.py` decides, `measure` measures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from efserve.loadtest.config import BenchConfig
from efserve.loadtest.search import Goal, LatencyGoal, Probes, SloGoal, highest, search
from efserve.records import LevelResult, Load, SearchOutcome

Measure = Callable[[Load], Awaitable[LevelResult | None]]


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched: the highest load that meets the goal.

    `start`: the first rate to try, 0 for one to be found out; a search through given levels does not need it.
    """

    probes: Callable[[float], Probes]  # from the start
    goal: Goal
    load: Callable[[float], Load]
    needs_start: bool
    start: float = 0.0


def asked_search(config: BenchConfig) -> Search | None:
    """The search of the options; None when they ask for none. Raises UsageError."""
    if config.max_rate_under_slo is not None:
        return Search(
            highest,
            SloGoal(config.max_rate_under_slo),
            lambda rate: Load.rate(rate, config.distribution),
            needs_start=True,
            start=config.loads[0].value if config.loads else 0.0,
        )
    if config.latency_threshold is not None:
        loads = {load.value: load for load in config.loads}
        goal = LatencyGoal(config.latency_threshold, config.percentile)
        return Search(lambda _: search(config.search, list(loads)), goal, loads.__getitem__, needs_start=False)
    return None


async def run_search(
    asked: Search, measure: Measure, stop: asyncio.Event
) -> tuple[tuple[LevelResult, ...], SearchOutcome]:
    """Every level that was measured, and what was found; when `stop` is set, the highest load that met it so far.

    Where a start has to be found out, the first level is one request at a time: the rate that this gives is one that
    the server keeps up with, and not far below its best.
    """
    levels: list[LevelResult] = []
    start = asked.start
    if asked.needs_start and not start:
        alone = await measure(Load.closed(1))
        levels += [alone] if alone is not None else []
        start = float(f"{alone.statistics.requests_per_s:.2g}") if alone is not None else 0.0
        if stop.is_set() or not start:
            return tuple(levels), _outcome(asked, levels, None)
    probes = asked.probes(start)
    probe, good = next(probes), list[float]()
    while True:
        level = await measure(asked.load(probe))
        met = level is not None and asked.goal(level)
        levels += [level] if level is not None else []
        good += [probe] if met else []
        if level is None or stop.is_set():
            return tuple(levels), _outcome(asked, levels, max(good, default=None))
        try:
            probe = probes.send(met)
        except StopIteration as end:
            return tuple(levels), _outcome(asked, levels, end.value)


def _outcome(asked: Search, levels: Sequence[LevelResult], found: float | None) -> SearchOutcome:
    met = tuple(asked.goal(level) for level in levels)
    return SearchOutcome(
        goal=str(asked.goal),
        found=None if found is None else asked.load(found),
        met=met,
        client_bound=any(
            level.statistics.client_bound for level, is_met in zip(levels, met, strict=True) if not is_met
        ),
    )
