"""`efserve compare`: the same load on several servers in turns, round after round."""

import asyncio
import contextlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from efserve import __version__
from efserve.comparison import Comparison, Contender, Turn
from efserve.errors import MeasurementFailed, UsageError
from efserve.histogram import Histogram
from efserve.loadtest.bench import Bench, prepared
from efserve.loadtest.config import BenchConfig
from efserve.records import LevelResult, Load, Target, machine_facts
from efserve.stats import WindowFigures, in_reported_windows

_NAMED = re.compile(r"([\w.-]+)=(.*)", re.DOTALL)
# What a target may say of its embedded server: field of BenchConfig, and its type.
_SERVER_OPTIONS: dict[str, tuple[str, type]] = {
    "--model-repository": ("model_repository", tuple),
    "--engine": ("engine", str),
    "--instances": ("instances", int),
    "--threads": ("threads", int),
    "--max-batch": ("max_batch", int),
    "--queue-delay-us": ("queue_delay_us", int),
    "--protocol": ("protocol", str),
}


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """The options of `efserve compare`; those it shares with `bench` mean the same."""

    targets: tuple[str, ...]
    rounds: int = 5
    concurrency: int = 8
    request_rate: float | None = None  # requests/s in an open loop instead
    distribution: str = "constant"
    gamma_cv: float = 2.0
    max_connections: int = 1024
    processes: int = 1
    model: str = ""
    model_version: str = ""
    batch: int = 1
    input: str = "random"
    tensor_format: str = "auto"
    shape: tuple[str, ...] = ()
    string_length: int = 16
    seed: int = 0
    duration_s: float = 5.0
    warmup_s: float = 0.5
    window_ms: int = 0
    timeout_s: float = 30.0
    tls_ca: Path | None = None
    tls_insecure: bool = False
    model_repository: tuple[str, ...] = ()  # of the embedded servers that name none

    @property
    def load(self) -> Load:
        """The load of every turn."""
        return self._bench().loads[0]

    def contenders(self) -> tuple[tuple[str, str, BenchConfig], ...]:
        """Name, what was given, and the benchmark of each target. Raises UsageError."""
        if len(self.targets) < 2:
            raise UsageError("give two targets or more: URLs, or NAME=OPTIONS of the embedded server")
        found = [_contender(text, self._bench()) for text in self.targets]
        names = [name for name, _, _ in found]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two targets are called '{name}'; name them apart with NAME=TARGET")
        for _, _, bench in found:
            bench.check()
        return tuple(found)

    def _bench(self) -> BenchConfig:
        shared = {field.name for field in fields(BenchConfig)} & {field.name for field in fields(self)}
        options = {name: getattr(self, name) for name in shared}
        rate = "" if self.request_rate is None else f"{self.request_rate:.15g}"
        return BenchConfig(**{**options, "concurrency": "" if rate else str(self.concurrency), "request_rate": rate})

    def as_json(self) -> dict[str, Any]:
        """All options by name, as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"tls_ca": None if self.tls_ca is None else str(self.tls_ca)}


def _contender(text: str, base: BenchConfig) -> tuple[str, str, BenchConfig]:
    named = _NAMED.fullmatch(text)
    name, given = (named[1], named[2].strip()) if named else ("", text.strip())
    if given and not given.startswith("-"):
        url = given if "://" in given else f"http://{given}"
        return name or url.partition("://")[2].rstrip("/"), given, replace(base, url=given, model_repository=())
    if not name:
        raise UsageError(f"target '{text}': expected a URL, or NAME=OPTIONS such as two=\"--instances 2\"")
    return name, given, replace(base, **_server_options(name, given))


def _server_options(name: str, text: str) -> dict[str, Any]:
    """Fields of BenchConfig from options as `efserve serve` takes them."""
    found: dict[str, Any] = {}
    try:
        words = iter(shlex.split(text))
    except ValueError as exc:
        raise UsageError(f"target '{name}': {exc} in '{text}'") from exc
    for word in words:
        option, equals, value = word.partition("=")
        if option not in _SERVER_OPTIONS:
            raise UsageError(f"target '{name}': '{option}' is none of {', '.join(_SERVER_OPTIONS)}")
        field, kind = _SERVER_OPTIONS[option]
        value = value if equals else next(words, "")
        if not value or (kind is int and not (value.isascii() and value.isdigit())):
            raise UsageError(f"target '{name}': {option} needs a {'number' if kind is int else 'value'}, got '{value}'")
        found[field] = (*found.get(field, ()), value) if kind is tuple else kind(value)
    return found


class Watcher(Protocol):
    """Who watches a comparison; all calls come from the loop, between turns."""

    def on_contender(self, contender: Contender) -> None:
        """A server is there and answered a first request."""

    def on_turn(self, number: int, contender: Contender, turn: Turn) -> None:
        """A contender has had its turn in round `number`, from 1."""


async def run_comparison(config: CompareConfig, watcher: Watcher, stop: asyncio.Event) -> Comparison:
    """Measure all rounds, or until `stop` is set: then the whole rounds so far are the result.

    Every second round goes backwards (A B, B A, ...), so that a machine that gets slower or faster all the time favours
    nobody. Raises UsageError, RemoteError, MeasurementFailed; the latter too when there is not one whole round.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    asked = config.contenders()
    rounds: list[tuple[Turn, ...]] = []
    async with contextlib.AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(prepared(bench, _Silent(), stop)) for _, _, bench in asked]
        contenders = tuple(
            Contender(name, given, bench.target) for (name, given, _), bench in zip(asked, benches, strict=True)
        )
        for contender in contenders:
            watcher.on_contender(contender)
        for number in range(1, config.rounds + 1):
            turns = await _round(number, config.load, benches, contenders, watcher)
            if turns is None:
                break
            rounds.append(turns)
    if not rounds:
        raise MeasurementFailed("interrupted before a round was over")
    return Comparison(
        efserve_version=__version__,
        started_at=started_at,
        machine=machine_facts(),
        config=config.as_json(),
        load=config.load,
        contenders=contenders,
        rounds=tuple(rounds),
        interrupted=stop.is_set(),
    )


async def _round(
    number: int, load: Load, benches: Sequence[Bench], contenders: Sequence[Contender], watcher: Watcher
) -> tuple[Turn, ...] | None:
    """The turns in the order of the contenders; None when it was cut short."""
    turns: dict[int, Turn] = {}
    order = range(len(benches))
    for index in order if number % 2 else reversed(order):
        result = await benches[index].measure(load)
        if result is None or benches[index].stop.is_set():
            return None
        latency_us = Histogram()
        latency_us.add(result.record.requests.latency_us[in_reported_windows(result.record)])
        turns[index] = Turn(result.statistics, latency_us, result.record.stable, result.record.reason)
        watcher.on_turn(number, contenders[index], turns[index])
    return tuple(turns[index] for index in order)


class _Silent:
    """An observer of single benchmarks who says nothing."""

    def on_target(self, target: Target) -> None: ...

    def on_level_start(self, load: Load) -> None: ...

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None: ...

    def on_level(self, result: LevelResult) -> None: ...
