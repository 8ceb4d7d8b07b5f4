"""A served version with real workers: what its instances do when they die."""

import asyncio
import time
from pathlib import Path

import numpy as np
import uvloop

from efserve.counters import BACKEND, CANCELED, OTHER, REJECTED
from efserve.errors import Unavailable, WorkerDied
from efserve.inference import InferRequest, Outcome
from efserve.partition import Obtained, Partition
from efserve.partitions.mps import MpsDaemons
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
from efserve.repository import read_model
from efserve.server.mps import MpsService
from efserve.server.options import ServeConfig
from efserve.server.shared import Shared
from efserve.server.version import ServedVersion, VersionState
from efserve.worker.handle import WorkerState

ZOO = Path(__file__).parents[1] / "models"
DEADLINE_S = 15.0


async def ask(version: ServedVersion) -> Outcome:
    """One request, which waits until an instance is there to run it."""
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    data = np.ones((1, 4), np.float32).tobytes()
    version.submit(InferRequest((data,), ((1, 4),), 1, "k", answer.set_result, arrival_ns=time.monotonic_ns()))
    return await asyncio.wait_for(answer, DEADLINE_S)


def test_an_instance_that_waits_to_restart_gives_up_with_the_version() -> None:
    async def whole() -> None:
        found = read_model(ZOO / "echo").resolve(1)
        version = ServedVersion(found, {}, ServeConfig(), (Partition(),) * 2)
        await version.start()
        while version.state is VersionState.READY:
            await ask(version)
            for worker in list(version.workers.values()):
                if worker.state is WorkerState.READY:
                    worker.kill()
        assert "died 5 times" in version.reason
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, going_on = await asyncio.wait(others, timeout=DEADLINE_S)
            assert not going_on
        assert not version.workers
        assert not version.places
        await version.stop(0)

    uvloop.run(whole())


def test_a_request_that_outlasts_the_drain_is_refused() -> None:
    async def whole() -> None:
        version = ServedVersion(read_model(ZOO / "hangs_in_infer").resolve(1), {}, ServeConfig())
        await version.start()
        asking = asyncio.create_task(ask(version))
        await asyncio.sleep(0)  # it is sent at once
        await version.retire(0.01)
        refused = await asking
        assert isinstance(refused, Unavailable)
        assert str(refused) == "model 'hangs_in_infer' is being unloaded"
        assert version.is_idle

    uvloop.run(whole())


def test_a_request_that_kills_its_workers_is_the_models_failure() -> None:
    async def whole() -> None:
        version = ServedVersion(read_model(ZOO / "killed_in_infer").resolve(1), {}, ServeConfig())
        await version.start()
        assert isinstance(await ask(version), WorkerDied)
        assert version.counters.failures == {BACKEND: 1, CANCELED: 0, OTHER: 0, REJECTED: 0}
        await version.stop(0)

    uvloop.run(whole())


class FaultyMps(MpsService):
    """Raises, when it is asked about the second worker, what it never should."""

    asked = 0

    async def confirm(self, partition: Partition, pid: int, obtained: Obtained) -> None:
        self.asked += 1
        if self.asked == 2:
            raise RuntimeError(f"no answer for {partition.device or 'the CPU'}")


def test_a_fault_of_our_own_makes_the_version_unavailable_and_ends_its_workers(tmp_path: Path) -> None:
    async def whole() -> None:
        mps = FaultyMps(MpsDaemons(RunDirectory(tmp_path), NvidiaPrograms(deadline_s=DEADLINE_S)))
        found = read_model(ZOO / "echo").resolve(1)
        version = ServedVersion(found, {}, ServeConfig(), (Partition(),) * 2, Shared(mps=mps))
        await asyncio.wait_for(version.start(), DEADLINE_S)
        assert version.state is VersionState.UNAVAILABLE
        assert "could not be kept alive: RuntimeError: no answer for" in version.reason
        refused = await ask(version)
        assert isinstance(refused, Unavailable)
        assert version.reason in str(refused)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=DEADLINE_S)
        assert not version.workers
        await version.stop(0)

    uvloop.run(whole())
