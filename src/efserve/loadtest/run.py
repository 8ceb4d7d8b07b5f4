"""A whole benchmark: the loads that the options ask for, one level each -> one `BenchResult`."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from efserve import __version__
from efserve.errors import MeasurementFailed
from efserve.loadtest.bench import Bench, Observer, prepared
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.searching import asked_search, run_search
from efserve.records import BenchResult, LevelResult, Load, SearchOutcome, machine_facts

OnProgress = Callable[[Load, int, int], None]  # the load; clients or requests that have ended, and how many there are


async def run_bench(
    config: BenchConfig, observer: Observer, stop: asyncio.Event, on_progress: OnProgress | None = None
) -> BenchResult:
    """Measure all levels, or until `stop` is set: then the current level is cut short and the rest left out.

    `on_progress`: called now and then during loads that have an end, in place of the observer's `on_window`.

    Raises UsageError, MeasurementFailed and RemoteError before the first level, MeasurementFailed when the embedded
    server dies or nothing was measured at all.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    asked = asked_search(config)
    found: SearchOutcome | None = None
    async with prepared(config, observer, stop) as bench:
        bench.on_progress = on_progress
        if asked is not None:
            levels, found = await run_search(asked, bench.measure, stop)
        else:
            levels = await _levels(config, bench)
        if not levels:
            raise MeasurementFailed("interrupted before anything was measured")
        return BenchResult(
            efserve_version=__version__,
            started_at=started_at,
            machine=machine_facts(),
            config=config.as_json(),
            target=bench.target,
            levels=levels,
            interrupted=stop.is_set(),
            search=found,
        )


async def _levels(config: BenchConfig, bench: Bench) -> tuple[LevelResult, ...]:
    results: list[LevelResult] = []
    from_files = bench.mix.load()
    for load in (from_files,) if from_files else config.loads:
        result = await bench.measure(load)
        if result is not None:
            results.append(result)
        if bench.stop.is_set():
            break
    return tuple(results)
