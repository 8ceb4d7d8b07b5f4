"""A prepared benchmark: server, model and requests are there, and `measure` measures one level.

Searches, comparisons and plain runs all measure through it; which loads come next is theirs to say.
"""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from efserve.client.server import v2_server
from efserve.client.v2 import V2Server
from efserve.errors import MeasurementFailed, UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.crew import Child, CrewSource, LocalSource, crew
from efserve.loadtest.embedded import EmbeddedServer, embedded_server
from efserve.loadtest.job import LoadJob
from efserve.loadtest.limits import allow_connections
from efserve.loadtest.loads import Mix, lasts_to_the_end, read_mix, work_of
from efserve.loadtest.measure import LevelPlan, LevelSampler, measure_level
from efserve.loadtest.sampling import GaugeSampler, metrics_page, server_pids
from efserve.loadtest.target import TargetModel, described, find_model
from efserve.loadtest.workload import Share
from efserve.records import LevelResult, Load, Target
from efserve.stats import WindowFigures, level_statistics

CONTROL_DEADLINE_S = 30.0

_Result = TypeVar("_Result")


class Observer(Protocol):
    """Who watches a benchmark. All calls come from the loop; `on_window` while load runs, so it has to be quick."""

    def on_target(self, target: Target) -> None:
        """The server and the model have been found, and a first request was answered rightly."""

    def on_level_start(self, load: Load) -> None:
        """Load begins, with the warm-up."""

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None:
        """A measurement window is over."""

    def on_level(self, result: LevelResult) -> None:
        """A level is done."""


class Bench:
    """Measures levels, one at a time; made by `prepared`."""

    def __init__(
        self,
        config: BenchConfig,
        server: EmbeddedServer | None,
        target: Target,
        models: tuple[TargetModel, ...],
        mix: Mix,
        children: Sequence[Child],
        observer: Observer,
        stop: asyncio.Event,
    ) -> None:
        self.config = config
        self.server = server  # None: the server at --url
        self.target = target
        self.models = models
        self.mix = mix
        self.stop = stop  # set it to end the current level
        self.make_sampler: Callable[[], LevelSampler] | None = None  # of gauges, one for each level
        self.on_progress: Callable[[Load, int, int], None] | None = (
            None  # of loads that have an end, instead of windows
        )
        self._children = tuple(children)  # empty: load is made in this process
        self._observer = observer
        self._measured = 0

    def __repr__(self) -> str:
        return f"<Bench of {self.target.model} at {self.target.url}, {self._measured} levels measured>"

    def client_pids(self) -> list[int]:
        """The processes that make load."""
        return [child.process.pid for child in self._children] or [os.getpid()]

    async def measure(self, load: Load) -> LevelResult | None:
        """Measure one level; None when `stop` was set before its first window.

        Raises MeasurementFailed when the embedded server has died.
        """
        job = LoadJob(
            url=self.target.url,
            traffic=tuple(model.traffic for model in self.models),
            timeout_s=self.config.timeout_s,
            work=work_of(load, self.config, self.mix),
            trust=self.config.trust,
        )
        allow_connections(job.work.connections)
        number, self._measured = self._measured, self._measured + 1
        invalid = [reason for model in self.models if (reason := await model.invalid(number))]
        self._observer.on_level_start(load)
        _quiet_collector()
        plan = self._plan(load, job)
        on_window = _ignore if plan.on_progress else partial(self._observer.on_window, load)
        record = await measure_level(plan, load, self.stop, on_window)
        if self.server is not None:
            self.server.check_alive()
        if record is None:
            return None
        if invalid:
            record = replace(record, stable=False, reason=f"the answer before this level was wrong: {invalid[0]}")
        result = LevelResult(record, level_statistics(record))
        self._observer.on_level(result)
        return result

    def _plan(self, load: Load, job: LoadJob) -> LevelPlan:
        config = self.config
        to_the_end = lasts_to_the_end(load, config)
        return LevelPlan(
            source=CrewSource(self._children) if self._children else LocalSource(),
            job=job,
            to_the_end=to_the_end,
            counters=tuple(model.counters for model in self.models),
            sampler=self.make_sampler() if self.make_sampler else None,
            warmup_s=config.warmup_s,
            window_s=config.window_s,
            duration_s=config.duration_s,
            percentile=config.percentile,
            on_progress=partial(self.on_progress, load) if self.on_progress and to_the_end else None,
        )


def _ignore(number: int, figures: WindowFigures) -> None:
    """For windows that nobody watches."""


@contextlib.asynccontextmanager
async def prepared(config: BenchConfig, observer: Observer, stop: asyncio.Event) -> AsyncIterator[Bench]:
    """A benchmark ready to measure: the embedded server started where there is no --url, the model found and tried.

    Raises UsageError, MeasurementFailed and RemoteError; MeasurementFailed too when `stop` is set meanwhile.
    """
    config.check()
    mix = read_mix(config)
    async with contextlib.AsyncExitStack() as stack:
        children: Sequence[Child] = ()
        if config.processes > 1:
            children = await unless_stopped(stack.enter_async_context(crew(config.processes)), stop)
        server: EmbeddedServer | None = None
        if not config.url:
            models = tuple(dict.fromkeys(mix.models)) if all(mix.models) else ()
            grpc = config.protocol == "grpc"
            start = stack.enter_async_context(embedded_server(config.server_options(), models, grpc=grpc))
            server = await unless_stopped(start, stop)
        url = (server.grpc_url if config.protocol == "grpc" else server.url) if server else config.url
        client = v2_server(url, min(CONTROL_DEADLINE_S, config.timeout_s), config.trust)
        target, found, mix = await unless_stopped(_find(config, mix, client, server, stack), stop)
        bench = Bench(config, server, target, found, mix, children, observer, stop)
        metrics_url, first = server.metrics_url if server else "", found[0].info.name
        page = await metrics_page(config.metrics_url, metrics_url, client.host, first)
        pid = server.process.pid if server else None
        bench.make_sampler = lambda: GaugeSampler(bench.client_pids(), server_pids(client.host, client.port, pid), page)
        observer.on_target(target)
        yield bench


async def _find(
    config: BenchConfig, mix: Mix, client: V2Server, server: EmbeddedServer | None, stack: contextlib.AsyncExitStack
) -> tuple[Target, tuple[TargetModel, ...], Mix]:
    info = await client.server()
    goals = config.slo_ms
    found = []
    for index, name in enumerate(mix.models):
        share = mix.shares[index] if mix.shares else None
        single = _of_share(config, share) if share else replace(config, model=name or config.model)
        default = {"": share.slo_ms} if share else {}
        found.append(await find_model(single, client, info, server.unready if server else {}, default | goals, stack))
    names = [model.info.name for model in found]
    for name in goals:
        if name and name not in names:
            raise UsageError(f"--goodput {name}: that model is not measured; measured: {', '.join(names)}")
    if mix.trace is not None:
        found = [model for index, model in enumerate(found) if model.info.name not in names[:index]]
    return described(client, info, found, embedded=server is not None), tuple(found), mix.resolved(names)


def _of_share(config: BenchConfig, share: Share) -> BenchConfig:
    return replace(
        config,
        model=share.model,
        model_version=share.version,
        batch=share.batch,
        shape=share.shape_options,
        input=share.input or config.input,
    )


async def unless_stopped(work: Awaitable[_Result], stop: asyncio.Event) -> _Result:
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


def _quiet_collector() -> None:
    """Keep what is alive now out of garbage collections, which would stop the load for tens of milliseconds.

    For good: it lives as long as the benchmark, and the next level then looks only at what came after it.
    """
    gc.collect()
    gc.freeze()
