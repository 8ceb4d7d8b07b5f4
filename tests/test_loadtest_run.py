"""Whole benchmarks in process, against a real small server: what is found, counted, marked and refused."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

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


def test_an_open_loop_sends_at_its_rate_and_tells_latency_apart() -> None:
    behaviour = Behaviour(delay_s=0.01)
    config = BenchConfig(request_rate="100,200", duration_s=0.6, warmup_s=0.05, distribution="poisson")
    result, watcher = bench(behaviour, config)
    assert watcher.started == [Load.rate(100, "poisson"), Load.rate(200, "poisson")]
    for level in result.levels:
        record, statistics = level.record, level.statistics
        assert statistics == level_statistics(record)
        assert statistics.due_per_s == pytest.approx(sum(window.due for window in record.windows) / 0.6, rel=0.2)
        assert (record.requests.latency_us >= record.requests.service_us).all()
        assert record.requests.service_us.min() >= 8000  # the timers of the server count milliseconds
        assert statistics.delay is not None
        assert record.pool is not None
        assert 1 <= record.pool.connections <= record.pool.limit
        assert record.pool.waited == 0


def test_above_its_capacity_latency_grows_and_the_level_is_reported() -> None:
    """Two connections and 20 ms per answer: 100 requests/s and no more, of the 300 that are due."""
    behaviour = Behaviour(delay_s=0.02)
    config = BenchConfig(request_rate="300", duration_s=1.2, warmup_s=0.05, max_connections=2)
    result, watcher = bench(behaviour, config)
    (level,) = result.levels
    record, statistics = level.record, level.statistics
    assert not record.stable
    assert "latency grows: the server does not keep up with" in record.reason
    assert len(record.windows) == record.reported == len(watcher.windows) == 3  # all of --duration
    assert statistics.requests_per_s < 101
    assert statistics.due_per_s == pytest.approx(300, rel=0.02)
    assert record.pool is not None
    assert record.pool.connections == 2
    assert record.pool.waited > 100
    due = sum(window.due for window in record.windows)
    assert record.pool.unanswered >= due - statistics.requests
    assert record.requests.latency_us[-1] > record.requests.latency_us[0] + 500_000
    assert record.requests.service_us.max() < 500_000  # the server itself is as fast as ever


@pytest.mark.parametrize("load", [{"concurrency": "3"}, {"request_rate": "500"}])
def test_a_request_count_is_sent_whole_and_timed_by_its_true_span(load: dict[str, str]) -> None:
    behaviour = Behaviour(delay_s=0.001)
    config = BenchConfig(**load, request_count=40, warmup_s=0.0, duration_s=0.6)  # type: ignore[arg-type]  # strings all
    result, _ = bench(behaviour, config)
    (level,) = result.levels
    record, statistics = level.record, level.statistics
    assert record.stable
    assert statistics.requests == len(record.requests.end_us) == 40
    assert behaviour.infers == 40 + 2  # one to find out, one before the level
    assert record.windows[0].start_us == 0
    assert record.windows[-1].end_us == record.requests.end_us[-1]
    assert statistics.duration_s == record.requests.end_us[-1] / 1e6
    assert (record.requests.end_us - record.requests.latency_us).min() in (0, 1)  # the first send
    assert statistics.server is not None


def test_short_lived_clients_are_counted_one_by_one() -> None:
    behaviour = Behaviour()
    config = BenchConfig(clients=3, total_clients=10, requests_per_client=4, warmup_s=0.0)
    result, _ = bench(behaviour, config)
    record, statistics = result.levels[0].record, result.levels[0].statistics
    assert record.load.kind == "clients"
    assert record.clients is not None
    assert record.clients.requests.tolist() == [4] * 10
    assert statistics.clients is not None
    assert statistics.clients.clients == 10
    assert statistics.clients.mean_us == pytest.approx(record.clients.mean_us.mean())
    assert statistics.requests == 40


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("0\n0.02,echo\n0.02\n0.3\n")
    result, _ = bench(Behaviour(), BenchConfig(schedule=str(tmp_path / "t"), warmup_s=0.0))
    record = result.levels[0].record
    assert [model.name for model in record.models] == ["echo"]  # the one under test is the one by name
    assert len(record.requests.end_us) == 4
    dues_us = np.sort(record.requests.end_us - record.requests.latency_us)
    assert dues_us.tolist() == pytest.approx([0, 20_000, 20_000, 300_000], abs=2)


def test_shapes_change_the_rate_within_one_level() -> None:
    config = BenchConfig(request_rate="20:400", load_shape="ramp", duration_s=0.9, warmup_s=0.0, window_ms=300)
    result, _ = bench(Behaviour(), config)
    (level,) = result.levels
    dues = [window.due for window in level.record.windows]
    assert dues[0] < dues[1] < dues[2]
    assert level.statistics.requests == sum(dues) == pytest.approx(189, abs=1)


def test_json_tensors_on_demand() -> None:
    behaviour = Behaviour()
    result, _ = bench(behaviour, replace(QUICK, concurrency="1", tensor_format="json"))
    assert not result.target.binary
    assert all(body.startswith(b"{") and body.endswith(b"}") for body in behaviour.bodies)


def test_goals_are_counted_per_model() -> None:
    result, _ = bench(Behaviour(delay_s=0.005), replace(QUICK, concurrency="2", goodput=("echo=1",)))
    (model,) = result.levels[0].statistics.models
    assert (model.slo_ms, model.within_slo) == (1.0, 0)
    with pytest.raises(UsageError, match="--goodput other: that model is not measured"):
        bench(Behaviour(), replace(QUICK, goodput=("other=1",)))


def test_progress_is_told_instead_of_windows() -> None:
    seen: list[tuple[Load, int, int]] = []

    async def main() -> Watcher:
        stop = asyncio.Event()
        watcher = Watcher(stop)
        config = BenchConfig(clients=2, total_clients=6, requests_per_client=10, warmup_s=0.0)
        async with running(Behaviour(delay_s=0.01)) as url:
            await run_bench(replace(config, url=url), watcher, stop, lambda *told: seen.append(told))
        return watcher

    assert not uvloop.run(main()).windows
    assert seen[-1][1:] == (6, 6)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_an_interrupted_trace_is_reported(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("0\n0.01\n3000\n")
    config = BenchConfig(schedule=str(tmp_path / "t"), warmup_s=0.0, duration_s=0.3)
    result, _ = bench(Behaviour(), config, stop_at="window")
    assert result.interrupted
    record = result.levels[0].record
    assert (record.stable, record.reason) == (False, "interrupted")
    assert len(record.requests.end_us) == 2


def test_levels_are_spread_over_processes(tmp_path: Path) -> None:
    behaviour = Behaviour()
    config = BenchConfig(concurrency="3,1", processes=2, request_count=30, warmup_s=0.0, duration_s=0.6)
    result, _ = bench(behaviour, config)
    three, one = result.levels
    assert three.record.pool is not None
    assert one.record.pool is not None
    assert (three.record.pool.processes, one.record.pool.processes) == (2, 1)
    assert three.statistics.requests == one.statistics.requests == 30
    assert behaviour.infers == 60 + 1 + 2
    assert (np.diff(three.record.requests.end_us) >= 0).all()
    config = replace(config, concurrency="", request_rate="200", request_count=40)
    opened, _ = bench(Behaviour(), config)
    record = opened.levels[0].record
    assert opened.levels[0].statistics.requests == 40
    dues_us = np.sort(record.requests.end_us - record.requests.latency_us)
    assert np.diff(dues_us).tolist() == pytest.approx([5000] * 39, abs=3)  # the shares interleave
