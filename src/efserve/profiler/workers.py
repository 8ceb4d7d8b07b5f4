"""Workers as the profiler runs them: fresh, without warm-up, on a share, with the profiler itself out of the way."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from efserve.profiler.sampling import Feeder
from efserve.profiler.shares import Share
from efserve.profiler.targets import Target
from efserve.worker.handle import Worker, WorkerFacts
from efserve.worker.spec import WorkerSpec

START_DEADLINE_S = 300.0
STOP_DRAIN_S = 2.0


def worker_spec(target: Target, share: Share, max_batch: int) -> WorkerSpec:
    """A worker of the target on a share that takes batches up to `max_batch`, whatever the config says."""
    return WorkerSpec(
        config=target.model.config,
        version=target.model.version,
        folder=target.model.folder,
        engine=target.model.engine,
        partition=share.partition,
        max_batch=max_batch,
        force_max_batch=max_batch,
        warmup=False,  # each batch is warmed up before it is measured, so that peak memory grows with the batch
    )


@asynccontextmanager
async def started(spec: WorkerSpec) -> AsyncIterator[tuple[Worker, WorkerFacts, Feeder]]:
    """A READY worker with its feeder; LoadFailed where it cannot be had."""
    feeder = Feeder()
    worker = Worker(spec, on_done=feeder.on_done, on_death=feeder.on_death)
    try:
        facts = await worker.start(START_DEADLINE_S)
        yield worker, facts, feeder
    finally:
        await worker.stop(STOP_DRAIN_S)


@contextmanager
def parent_on(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep this process on these cores meanwhile, so that it stays off those being measured where it can."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
