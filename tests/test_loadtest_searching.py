"""Searches as the options ask for them: with measurements made up, and against a real server of known capacity."""

import asyncio
from dataclasses import replace

import pytest
import uvloop

from efserve.loadtest.config import BenchConfig
from efserve.loadtest.run import run_bench
from efserve.loadtest.searching import asked_search, run_search
from efserve.records import LevelResult, Load, SearchOutcome, Target
from efserve.stats import WindowFigures
from made_levels import level
from v2_server import Behaviour, running


class Silent:
    """An observer who says nothing."""

    def on_target(self, target: Target) -> None: ...

    def on_level_start(self, load: Load) -> None: ...

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None: ...

    def on_level(self, result: LevelResult) -> None: ...


class Server:
    """Latency grows with the load, 0.1 ms for each unit; `stop` is set in the run of this number."""

    def __init__(self, stop_at: int = 0, cut: bool = False) -> None:
        self.stop = asyncio.Event()
        self.loads: list[Load] = []
        self._stop_at = stop_at
        self._cut = cut

    async def measure(self, load: Load) -> LevelResult | None:
        self.loads.append(load)
        if len(self.loads) == self._stop_at:
            self.stop.set()
            if self._cut:
                return None
        due = round(load.value) if load.is_open else None
        made = level([int(load.value * 100)] * (due or 100), due=due)
        return LevelResult(replace(made.record, load=load), made.statistics)


def searched(config: BenchConfig, server: Server) -> tuple[tuple[LevelResult, ...], SearchOutcome]:
    asked = asked_search(config)
    assert asked is not None
    return asyncio.run(run_search(asked, server.measure, server.stop))


def test_without_their_options_there_is_no_search() -> None:
    assert asked_search(BenchConfig()) is None


@pytest.mark.parametrize("kind", ["binary", "linear"])
def test_the_highest_concurrency_under_a_latency(kind: str) -> None:
    levels, found = searched(BenchConfig(concurrency="1:20", latency_threshold=1.25, search=kind), Server())
    assert found.found == Load.closed(12)
    assert found.goal == "mean latency <= 1.25 ms"
    assert found.met == tuple(level.record.load.value <= 12.5 for level in levels)
    assert len(levels) == (13 if kind == "linear" else 6)


def test_the_highest_rate_under_a_percentile() -> None:
    config = BenchConfig(request_rate="100:900:100", distribution="poisson", latency_threshold=45, percentile=99)
    _, found = searched(config, Server())
    assert found.found == Load.rate(400, "poisson")
    assert found.goal == "p99 latency <= 45 ms"


def test_the_highest_rate_under_an_slo() -> None:
    server = Server()
    levels, found = searched(BenchConfig(max_rate_under_slo=50), server)
    assert server.loads[:2] == [Load.closed(1), Load.rate(100)]  # 100 requests/s is what the level made up has
    assert found.met[:2] == (True, True)
    assert found.found
    assert 500 / 1.05 <= found.found.value <= 500
    assert found.goal == "99 % within 50 ms"
    assert len(levels) == len(found.met) == len(server.loads) <= 12
    assert searched(BenchConfig(request_rate="400", max_rate_under_slo=50), Server())[0][0].record.load.value == 400


def test_nothing_meets_the_goal() -> None:
    _, found = searched(BenchConfig(concurrency="5:9", latency_threshold=0.1), Server())
    assert found.found is None
    assert found.met == (False,)


@pytest.mark.parametrize("cut", [False, True])
def test_an_interrupted_search_tells_what_it_knows(cut: bool) -> None:
    levels, found = searched(BenchConfig(max_rate_under_slo=50), Server(stop_at=4, cut=cut))
    assert len(levels) == len(found.met) == (3 if cut else 4)
    assert found.found == Load.rate(200 if cut else 400)


@pytest.mark.parametrize("cut", [False, True])
def test_a_search_interrupted_at_its_begin_knows_nothing(cut: bool) -> None:
    levels, found = searched(BenchConfig(max_rate_under_slo=50), Server(stop_at=1, cut=cut))
    assert len(levels) == len(found.met) == (0 if cut else 1)
    assert found.found is None


def test_an_slo_that_cannot_be_met_is_given_up_soon() -> None:
    levels, found = searched(BenchConfig(max_rate_under_slo=0.01), Server())
    assert found.found is None
    assert len(levels) == 8


def test_a_server_of_known_capacity() -> None:
    """It works 4 ms on each request, one after the other: 250 requests/s and not one more."""
    config = BenchConfig(max_rate_under_slo=40, duration_s=0.5, warmup_s=0.05)

    async def main() -> SearchOutcome:
        async with running(Behaviour(delay_s=0.004, one_by_one=True)) as url:
            result = await run_bench(replace(config, url=url), Silent(), asyncio.Event())
            assert result.search is not None
            assert len(result.levels) == len(result.search.met)
            return result.search

    found = uvloop.run(main())
    assert found.found is not None
    assert 200 <= found.found.value <= 275
