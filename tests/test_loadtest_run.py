"""Whole benchmarks in process, against a real small server: what is found, counted, marked and refused."""

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import uvloop

from byte_server import Script, serving
from efserve.errors import EfserveError, MeasurementFailed, RemoteError, UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.run import run_bench
from efserve.records import BenchResult, LevelResult, Load, Target
from efserve.stats import WindowFigures, level_statistics
from v2_server import Behaviour, running

QUICK = BenchConfig(concurrency="1,3", duration_s=0.3, warmup_s=0.02)


@dataclass
class Watcher:
    """An observer that remembers, and can stop the benchmark in a window or at a level's start."""

    stop: asyncio.Event
    stop_at: str = ""
    target: Target | None = None
    started: list[Load] = field(default_factory=list)
    windows: list[tuple[Load, int]] = field(default_factory=list)
    levels: list[LevelResult] = field(default_factory=list)

    def on_target(self, target: Target) -> None:
        self.target = target

    def on_level_start(self, load: Load) -> None:
        self.started.append(load)
        if self.stop_at == "level":
            self.stop.set()

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None:
        self.windows.append((load, number))
        if self.stop_at == "window":
            self.stop.set()

    def on_level(self, result: LevelResult) -> None:
        self.levels.append(result)


def bench(behaviour: Behaviour, config: BenchConfig, stop_at: str = "") -> tuple[BenchResult, Watcher]:
    async def main() -> tuple[BenchResult, Watcher]:
        stop = asyncio.Event()
        watcher = Watcher(stop, stop_at)
        async with running(behaviour) as url:
            return await run_bench(replace(config, url=url), watcher, stop), watcher

    return uvloop.run(main())


def refused(behaviour: Behaviour, config: BenchConfig) -> EfserveError:
    with pytest.raises(EfserveError) as caught:
        bench(behaviour, config)
    return caught.value


def test_all_levels_are_measured_and_their_figures_follow_from_their_records() -> None:
    behaviour = Behaviour()
    result, watcher = bench(behaviour, replace(QUICK, batch=2))
    assert watcher.started == [level.record.load for level in result.levels] == [Load.closed(1), Load.closed(3)]
    assert watcher.levels == list(result.levels)
    assert result.target == watcher.target
    assert result.target.inputs == ("input FP32 [2, 16]",)
    assert (result.target.model, result.target.server_name, result.target.binary) == ("echo", "test", True)
    for level in result.levels:
        record, statistics = level.record, level.statistics
        assert statistics == level_statistics(record)
        assert statistics.requests > 0
        assert statistics.inferences_per_s == pytest.approx(2 * statistics.requests_per_s)
        assert statistics.errors == {}
        assert record.windows[0].start_us == 0
        assert all(a.end_us == b.start_us for a, b in zip(record.windows, record.windows[1:], strict=False))
        assert 0 < record.requests.end_us[0] <= record.requests.end_us[-1] <= record.windows[-1].end_us
        assert (np.diff(record.requests.end_us) >= 0).all()
        assert record.reported == 3 or not record.stable
        assert statistics.server is not None
        assert statistics.server.mean_batch == 2
        assert statistics.server.queue_us == pytest.approx(10)
    assert not result.interrupted


def test_closed_loop_with_a_known_delay_obeys_littles_law() -> None:
    """concurrency = throughput x latency holds for every closed loop, whatever the machine's speed."""
    behaviour = Behaviour(delay_s=0.002)
    result, _ = bench(behaviour, replace(QUICK, concurrency="4", duration_s=1.2, window_ms=400))
    statistics = result.levels[0].statistics
    assert statistics.latency is not None
    assert statistics.requests_per_s * statistics.latency.mean_us / 1e6 == pytest.approx(4, rel=0.05)
    assert statistics.latency.p50_us >= 2000


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(has_config=False, has_stats=False),
        Behaviour(extensions=()),
        Behaviour(chunked=True),
        Behaviour(close_after_answer=True),
    ],
    ids=["bare", "json only", "chunked", "closing"],
)
def test_any_v2_server_will_do(behaviour: Behaviour) -> None:
    result, _ = bench(behaviour, replace(QUICK, concurrency="2"))
    statistics = result.levels[0].statistics
    assert statistics.requests > 0
    assert statistics.errors == {}
    assert (statistics.server is None) == (not behaviour.has_stats)
    assert result.target.binary == bool(behaviour.extensions)


def test_errors_are_counted_by_kind_and_never_as_successes() -> None:
    behaviour = Behaviour(infer_status=lambda number: 503 if number > 10 else 200)
    result, _ = bench(behaviour, replace(QUICK, concurrency="2"))
    level = result.levels[0]
    assert level.statistics.requests == 0
    assert level.statistics.latency is None
    assert level.statistics.errors["http 503"] == sum(len(failed.end_us) for failed in level.record.failures)
    assert not level.record.stable


def test_a_wrong_answer_before_a_level_marks_it() -> None:
    behaviour = Behaviour(drop_floats=lambda number: int(number == 2))
    result, _ = bench(behaviour, replace(QUICK, concurrency="1"))
    assert not result.levels[0].record.stable
    assert "the answer before this level was wrong: output 'output'" in result.levels[0].record.reason


def test_an_interrupted_level_is_reported_and_the_rest_left_out() -> None:
    result, watcher = bench(Behaviour(), replace(QUICK, concurrency="1:5"), stop_at="window")
    assert result.interrupted
    assert [level.record.load for level in result.levels] == [Load.closed(1)]
    record = result.levels[0].record
    assert (record.stable, record.reason, record.reported) == (False, "interrupted", len(record.windows))
    assert result.levels[0].statistics.requests > 0
    assert watcher.started == [Load.closed(1)]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(MeasurementFailed, match="interrupted before anything was measured"):
        bench(Behaviour(), QUICK, stop_at="level")


@pytest.mark.parametrize(
    ("config", "kind", "says"),
    [
        (replace(QUICK, batch=9), RemoteError, "inference request batch-size must be <= 8 for 'echo'"),
        (replace(QUICK, model="nope"), RemoteError, "Request for unknown model: 'nope' is not found"),
        (replace(QUICK, input="ones"), UsageError, "--input: expected random, zero"),
        (replace(QUICK, shape=("input:17",)), UsageError, "does not fit the model's"),
        (replace(QUICK, concurrency="a"), UsageError, "--concurrency: expected START:END"),
        (replace(QUICK, instances=2), UsageError, "--instances is for the embedded server"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_load(
    config: BenchConfig, kind: type[EfserveError], says: str
) -> None:
    behaviour = Behaviour()
    error = refused(behaviour, config)
    assert type(error) is kind
    assert says in str(error)
    assert behaviour.infers <= 1


def test_without_an_index_the_model_has_to_be_named() -> None:
    assert "name one with --model" in str(refused(Behaviour(has_index=False), QUICK))
    result, _ = bench(Behaviour(has_index=False), replace(QUICK, model="echo", concurrency="1"))
    assert result.target.model == "echo"


def test_another_kind_of_server_is_told_apart() -> None:
    async def main() -> None:
        async with serving(Script([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], "close")) as url:
            stop = asyncio.Event()
            with pytest.raises(RemoteError, match="is no KServe v2 server"):
                await run_bench(replace(QUICK, url=url), Watcher(stop), stop)

    uvloop.run(main())
