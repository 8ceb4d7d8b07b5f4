"""A whole benchmark: the loads that the options ask for, one level each -> one `BenchResult`."""

import asyncio
from datetime import UTC, datetime

from efserve import __version__
from efserve.errors import MeasurementFailed
from efserve.loadtest.bench import Bench, Observer, prepared
from efserve.loadtest.config import BenchConfig
from efserve.records import BenchResult, LevelResult, Load, machine_facts


async def run_bench(config: BenchConfig, observer: Observer, stop: asyncio.Event) -> BenchResult:
    """Measure all levels, or until `stop` is set: then the current level is cut short and the rest left out.

    Raises UsageError, MeasurementFailed and RemoteError before the first level, MeasurementFailed when the embedded
    server dies or nothing was measured at all.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    async with prepared(config, observer, stop) as bench:
        levels = await _levels(config, bench)
        if not levels:
            raise MeasurementFailed("interrupted before anything was measured")
        return BenchResult(
            efserve_version=__version__,
            started_at=started_at,
            machine=machine_facts(),
            config=config.as_json(),
            target=bench.target,
            levels=tuple(levels),
            interrupted=stop.is_set(),
        )


async def _levels(config: BenchConfig, bench: Bench) -> list[LevelResult]:
    results: list[LevelResult] = []
    for concurrency in config.levels:
        result = await bench.measure(Load.closed(concurrency))
        if result is not None:
            results.append(result)
        if bench.stop.is_set():
            break
    return results
