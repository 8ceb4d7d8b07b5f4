"""A whole benchmark: the server, the model, the requests, the levels -> one `BenchResult`."""

import asyncio
import contextlib
import gc
import resource
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from efserve import __version__
from efserve.client.answers import HeadCache
from efserve.client.http import Endpoint, HttpConnection, prepare
from efserve.client.infer import InferBody, infer_body
from efserve.client.v2 import ModelInfo, ServerInfo, V2Client
from efserve.errors import MeasurementFailed, RemoteError, UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.datafile import from_file
from efserve.loadtest.embedded import EmbeddedServer, embedded_server
from efserve.loadtest.inputs import generated, parse_shapes, sample_dims
from efserve.loadtest.measure import LevelPlan, measure_level
from efserve.records import BenchResult, LevelRecord, LevelResult, ServerCounters, Target, machine_facts
from efserve.stats import WindowFigures, level_statistics
from efserve.tensors import Array

CONTROL_DEADLINE_S = 30.0
SPARE_FILES = 100  # beside the connections

_Result = TypeVar("_Result")


class Observer(Protocol):
    """Who watches a benchmark. All calls come from the loop; `on_window` while load runs, so it has to be quick."""

    def on_target(self, target: Target) -> None:
        """The server and the model have been found, and a first request was answered rightly."""

    def on_level_start(self, concurrency: int) -> None:
        """Load begins, with the warm-up."""

    def on_window(self, concurrency: int, number: int, figures: WindowFigures) -> None:
        """A measurement window is over."""

    def on_level(self, result: LevelResult) -> None:
        """A level is done."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What the control calls found out before any load."""

    client: V2Client
    target: Target
    model: ModelInfo
    bodies: tuple[InferBody, ...]
    payload_bytes: int | None


async def run_bench(config: BenchConfig, observer: Observer, stop: asyncio.Event) -> BenchResult:
    """Measure all levels, or until `stop` is set: then the current level is cut short and the rest left out.

    Raises UsageError, MeasurementFailed and RemoteError before the first level, MeasurementFailed when the embedded
    server dies or nothing was measured at all.
    """
    config.check()
    _allow_connections(max(config.levels))
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    async with contextlib.AsyncExitStack() as stack:
        server: EmbeddedServer | None = None
        if not config.url:
            models = (config.model,) if config.model else ()
            start = _unless_stopped(stack.enter_async_context(embedded_server(config.server_options(), models)), stop)
            server = await start
        found = await _unless_stopped(_find(config, server), stop)
        observer.on_target(found.target)
        levels = await _levels(config, found, server, observer, stop)
    if not levels:
        raise MeasurementFailed("interrupted before anything was measured")
    return BenchResult(
        efserve_version=__version__,
        started_at=started_at,
        machine=machine_facts(),
        config=config.as_json(),
        target=found.target,
        levels=tuple(levels),
        interrupted=stop.is_set(),
    )


def _allow_connections(count: int) -> None:
    """Raise this process's limit of open files where the greatest level needs more; UsageError where it may not."""
    needed = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(f"--concurrency {count} needs {needed} open files, the system allows {hard}; see `ulimit -n`")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _unless_stopped(work: Awaitable[_Result], stop: asyncio.Event) -> _Result:
    """The result of `work`, unless `stop` comes first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise MeasurementFailed("interrupted before anything was measured")
        return task.result()
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _find(config: BenchConfig, server: EmbeddedServer | None) -> _Found:
    client = V2Client(server.url if server else config.url, min(CONTROL_DEADLINE_S, config.timeout_s))
    info = await client.server()
    unready = server.unready if server else {}
    if config.model in unready:
        raise MeasurementFailed(f"model '{config.model}' did not start: {unready[config.model]}")
    model = await client.model(config.model or await _default_model(client, unready), config.model_version)
    requests = _requests(config, model)
    bodies = tuple(infer_body(model.inputs, arrays, info.binary) for arrays in requests)
    answer = await client.infer(model, bodies[0])
    skip = 1 if model.batches else 0
    fixed = all(spec.datatype != "BYTES" and min(spec.dims[skip:], default=0) >= 0 for spec in model.outputs)
    return _Found(
        client=client,
        target=_target(client, info, model, requests[0], embedded=server is not None),
        model=model,
        bodies=bodies,
        payload_bytes=answer.payload_bytes if fixed and answer.payload_bytes >= 0 else None,
    )


async def _default_model(client: V2Client, unready: Mapping[str, str]) -> str:
    names = await client.ready_models()
    if names is None:
        raise UsageError(f"{client.http.endpoint.url} does not list its models: name one with --model")
    if not names:
        reasons = "".join(f"; {name}: {reason}" for name, reason in unready.items())
        raise MeasurementFailed(f"{client.http.endpoint.url} has no model that is ready{reasons}")
    return names[0]


def _requests(config: BenchConfig, model: ModelInfo) -> list[tuple[Array, ...]]:
    shapes = parse_shapes(config.shape)
    if config.input not in ("random", "zero"):
        return from_file(Path(config.input), model, config.batch, shapes)
    seed = config.seed if config.input == "random" else None
    return generated(model, sample_dims(model, config.batch, shapes), config.batch, seed, config.string_length)


def _target(
    client: V2Client, info: ServerInfo, model: ModelInfo, arrays: tuple[Array, ...], *, embedded: bool
) -> Target:
    inputs = tuple(
        f"{spec.name} {spec.datatype} {list(array.shape)}" for spec, array in zip(model.inputs, arrays, strict=True)
    )
    return Target(
        url=client.http.endpoint.url,
        embedded=embedded,
        server_name=info.name,
        server_version=info.version,
        model=model.name,
        model_version=model.version,
        platform=model.platform,
        inputs=inputs,
        binary=info.binary,
    )


async def _levels(
    config: BenchConfig, found: _Found, server: EmbeddedServer | None, observer: Observer, stop: asyncio.Event
) -> list[LevelResult]:
    plan = _plan(config, found)
    results: list[LevelResult] = []
    with _quiet_collector():
        for index, concurrency in enumerate(config.levels):
            invalid = await _invalid(found, found.bodies[index % len(found.bodies)])
            observer.on_level_start(concurrency)
            record = await measure_level(plan, concurrency, stop, partial(observer.on_window, concurrency))
            if server is not None:
                server.check_alive()
            if record is not None:
                record = _marked(record, invalid)
                results.append(LevelResult(record, level_statistics(record)))
                observer.on_level(results[-1])
            if stop.is_set():
                break
    return results


def _plan(config: BenchConfig, found: _Found) -> LevelPlan:
    endpoint: Endpoint = found.client.http.endpoint
    path = found.model.path + "/infer"
    heads = HeadCache()
    return LevelPlan(
        connect=lambda listener: HttpConnection(endpoint, listener, heads),
        requests=tuple(prepare(endpoint, "POST", path, body.data, body.headers) for body in found.bodies),
        rows_per_request=config.batch,
        payload_bytes=found.payload_bytes,
        counters=_counters(found),
        warmup_s=config.warmup_s,
        window_s=config.window_s,
        duration_s=config.duration_s,
        percentile=config.percentile,
        timeout_s=config.timeout_s,
    )


def _counters(found: _Found) -> Callable[[], Awaitable[ServerCounters | None]]:
    async def read() -> ServerCounters | None:
        try:
            return await found.client.counters(found.model)
        except RemoteError:  # the level's own records tell what is wrong with the server
            return None

    return read


async def _invalid(found: _Found, body: InferBody) -> str:
    """What is wrong with a whole answer, read in full before each level; empty when it is right."""
    try:
        await found.client.infer(found.model, body)
    except RemoteError as exc:
        return str(exc)
    return ""


def _marked(record: LevelRecord, invalid: str) -> LevelRecord:
    if not invalid:
        return record
    return replace(record, stable=False, reason=f"the answer before this level was wrong: {invalid}")


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Keep what is alive now out of garbage collections, which would stop the load for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
