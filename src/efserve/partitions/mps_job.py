"""`efserve mps` below its command line: which daemons to start, look at or stop."""

from dataclasses import dataclass
from pathlib import Path

from efserve.config import mps_run_directory
from efserve.errors import MpsFailed
from efserve.partitions.compute_mode import ListedGpu, choose, list_gpus
from efserve.partitions.mps import DaemonState, MpsDaemons, MpsFacts, Started
from efserve.partitions.mps_directory import ALL, RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms


@dataclass(frozen=True, slots=True)
class MpsJob:
    """What is to be done, to which GPUs and where."""

    action: str  # start, status, stop
    gpu: tuple[str, ...] = ()  # by index or uuid; empty: all
    single: bool = False  # one daemon for all of them
    run_dir: Path | None = None  # None: as the environment says
    deadline_s: float = 20.0  # of each command to a daemon


class MpsWork:
    """Does a job. What it raises is MpsFailed, or UsageError for GPUs that there are not."""

    def __init__(self, job: MpsJob) -> None:
        self._job = job
        directory = RunDirectory(job.run_dir or mps_run_directory())
        self._daemons = MpsDaemons(directory, NvidiaPrograms(deadline_s=job.deadline_s))

    @property
    def run_directory(self) -> Path:
        """Where the daemons have their files."""
        return self._daemons.directory.path

    async def start(self) -> tuple[Started, ...]:
        """Has the daemons run."""
        return await self._daemons.start(await self._gpus(), single=self._job.single)

    async def status(self) -> tuple[MpsFacts, ...]:
        """What there is on each GPU."""
        return await self._daemons.status(await self._gpus())

    async def stop(self) -> tuple[str, ...]:
        """Ends the daemons and restores the compute modes; answers the units that ended.

        MpsFailed where something could not be undone; the log has told what.
        """
        directory = self._daemons.directory
        uuids = {gpu.uuid for gpu in await self._gpus()} if self._job.gpu else None
        if uuids and ALL in directory.units():
            raise MpsFailed("one daemon serves all GPUs here and can only be stopped for all; leave --gpu away")
        ended, is_done = await self._daemons.stop(uuids)
        if not is_done:
            raise MpsFailed(f"not everything in {directory.path} could be undone; try it again, as root")
        return ended

    async def _gpus(self) -> tuple[ListedGpu, ...]:
        self._daemons.programs.found()
        return choose(await list_gpus(self._daemons.programs), self._job.gpu)


def exit_code(facts: tuple[MpsFacts, ...]) -> int:
    """Of `status`: 0 where MPS runs on every GPU, 3 where it does not, 1 where a daemon does not answer."""
    states = {fact.state for fact in facts}
    if DaemonState.HANGING in states:
        return 1
    return 3 if DaemonState.ABSENT in states else 0
