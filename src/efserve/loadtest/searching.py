"""The search that the options ask for, driven level by level; `search.py` decides, `measure` measures."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from efserve.loadtest.config import BenchConfig
from efserve.loadtest.search import Goal, LatencyGoal, Probes, SloGoal, highest, search
from efserve.records import LevelResult, Load, SearchOutcome

DEFAULT_START_PER_S = 100.0

Measure = Callable[[Load], Awaitable[LevelResult | None]]


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched: the highest load that meets the goal."""

    probes: Probes
    goal: Goal
    load: Callable[[float], Load]


def asked_search(config: BenchConfig) -> Search | None:
    """The search of the options; None when they ask for none. Raises UsageError."""
    if config.max_rate_under_slo is not None:
        start = config.loads[0].value if config.loads else DEFAULT_START_PER_S
        return Search(
            highest(start), SloGoal(config.max_rate_under_slo), lambda rate: Load.rate(rate, config.distribution)
        )
    if config.latency_threshold is not None:
        loads = {load.value: load for load in config.loads}
        goal = LatencyGoal(config.latency_threshold, config.percentile)
        return Search(search(config.search, list(loads)), goal, loads.__getitem__)
    return None


async def run_search(
    asked: Search, measure: Measure, stop: asyncio.Event
) -> tuple[tuple[LevelResult, ...], SearchOutcome]:
    """Every level that was measured, and what was found; when `stop` is set, the highest load that met it so far."""
    levels: list[LevelResult] = []
    met: list[bool] = []
    found: float | None = None
    probe = next(asked.probes)
    while True:
        level = await measure(asked.load(probe))
        if level is not None:
            levels.append(level)
            met.append(asked.goal(level))
        if level is None or stop.is_set():
            good = [level.record.load.value for level, is_met in zip(levels, met, strict=True) if is_met]
            found = max(good, default=None)
            break
        try:
            probe = asked.probes.send(met[-1])
        except StopIteration as end:
            found = end.value
            break
    missed = [level for level, is_met in zip(levels, met, strict=True) if not is_met]
    outcome = SearchOutcome(
        goal=str(asked.goal),
        found=None if found is None else asked.load(found),
        met=tuple(met),
        client_bound=any(level.statistics.client_bound for level in missed),
    )
    return tuple(levels), outcome
