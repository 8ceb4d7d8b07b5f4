"""Comparisons in process, against small servers with told delays; and what a TARGET may be."""

import asyncio
from dataclasses import dataclass, field

import pytest
import uvloop

from efserve.comparison import Comparison, Contender, Turn, ratio
from efserve.errors import MeasurementFailed, RemoteError, UsageError
from efserve.loadtest.compare import CompareConfig, run_comparison
from efserve.records import Load
from v2_server import Behaviour, running

QUICK = {"duration_s": 0.15, "warmup_s": 0.01, "concurrency": 2}


@dataclass
class Watcher:
    """Remembers the turns, and stops the comparison after so many."""

    stop: asyncio.Event
    stop_after: int = 1000
    names: list[str] = field(default_factory=list)
    turns: list[tuple[int, str]] = field(default_factory=list)

    def on_contender(self, contender: Contender) -> None:
        self.names.append(contender.name)

    def on_turn(self, number: int, contender: Contender, turn: Turn) -> None:
        self.turns.append((number, contender.name))
        if len(self.turns) == self.stop_after:
            self.stop.set()


def compare(rounds: int, stop_after: int = 1000) -> tuple[Comparison, Watcher]:
    async def main() -> tuple[Comparison, Watcher]:
        stop = asyncio.Event()
        watcher = Watcher(stop, stop_after)
        async with running(Behaviour(delay_s=0.002)) as slow, running(Behaviour()) as quick:
            config = CompareConfig((f"slow={slow}", f"quick={quick}"), rounds=rounds, **QUICK)  # type: ignore[arg-type]
            return await run_comparison(config, watcher, stop), watcher

    return uvloop.run(main())


def test_servers_take_turns_and_the_order_changes() -> None:
    found, watcher = compare(3)
    assert watcher.names == ["slow", "quick"]
    assert watcher.turns == [(1, "slow"), (1, "quick"), (2, "quick"), (2, "slow"), (3, "slow"), (3, "quick")]
    assert [len(turns) for turns in found.rounds] == [2, 2, 2]
    assert not found.interrupted
    throughput = ratio(found, "inferences_per_s", 1)
    assert throughput.ratio
    assert throughput.ratio > 1.5
    assert all(turns[0].statistics.requests_per_s < 1000 for turns in found.rounds)
    assert found.contenders[0].target.model == "echo"


def test_an_interrupted_comparison_reports_its_whole_rounds() -> None:
    found, watcher = compare(5, stop_after=3)
    assert len(watcher.turns) == 3
    assert len(found.rounds) == 1
    assert found.interrupted
    with pytest.raises(MeasurementFailed, match="before a round was over"):
        compare(5, stop_after=1)


def test_a_server_that_is_not_there() -> None:
    async def main() -> None:
        async with running(Behaviour()) as url:
            config = CompareConfig((url, "http://127.0.0.1:9"))
            await run_comparison(config, Watcher(asyncio.Event()), asyncio.Event())

    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        uvloop.run(main())


def test_targets_are_urls_or_options() -> None:
    config = CompareConfig(
        (
            "http://a:8000/",
            "b=http://b:1",
            "c=host:2",
            'two=--instances 2 --engine=onnx --model-repository "x y"',
            "d=",
        ),
        model_repository=("here",),
        batch=4,
    )
    contenders = config.contenders()
    assert [name for name, _, _ in contenders] == ["a:8000", "b", "c", "two", "d"]
    assert [bench.url for _, _, bench in contenders] == ["http://a:8000/", "http://b:1", "host:2", "", ""]
    two, default = contenders[3][2], contenders[4][2]
    assert two.server_options() == {"instances": 2, "engine": "onnx", "model_repository": ("x y",)}
    assert default.server_options() == {"model_repository": ("here",)}
    assert all(bench.batch == 4 for _, _, bench in contenders)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("http://a:1",), "two targets or more"),
        (("http://a:1", "http://a:1/"), "two targets are called 'a:1'"),
        (("x=--bad 1", "http://a:1"), "'--bad' is none of --model-repository"),
        (("x=--instances", "http://a:1"), "--instances needs a number, got ''"),
        (("x=--instances two", "http://a:1"), "--instances needs a number, got 'two'"),
        (("x=--engine", "http://a:1"), "--engine needs a value"),
        (("x=--engine 'onnx", "http://a:1"), "No closing quotation"),
        (("--instances 2", "http://a:1"), "expected a URL, or NAME=OPTIONS"),
        (("", "http://a:1"), "expected a URL"),
    ],
)
def test_bad_targets_get_a_sentence(targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CompareConfig(targets).contenders()


def test_the_load_is_a_concurrency_or_a_rate() -> None:
    assert CompareConfig(("a", "b"), concurrency=3).load == Load.closed(3)
    config = CompareConfig(("a", "b"), request_rate=50.5, distribution="poisson")
    assert config.load == Load.rate(50.5, "poisson")
    assert len(config.contenders()) == 2
    with pytest.raises(UsageError, match="--distribution poisson goes with"):
        CompareConfig(("a", "b"), distribution="poisson").contenders()


def test_an_open_loop_is_compared_too() -> None:
    async def main() -> Comparison:
        async with running(Behaviour()) as one, running(Behaviour(delay_s=0.005)) as other:
            config = CompareConfig((one, other), rounds=2, request_rate=300, duration_s=0.15, warmup_s=0.01)
            return await run_comparison(config, Watcher(asyncio.Event()), asyncio.Event())

    found = uvloop.run(main())
    assert found.load.label == "300/s"
    latency, throughput = ratio(found, "p50_us", 1).ratio, ratio(found, "inferences_per_s", 1).ratio
    assert latency
    assert latency > 2
    assert throughput == pytest.approx(1, abs=0.2)
