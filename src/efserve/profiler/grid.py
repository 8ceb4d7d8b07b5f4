"""Runs over the grid of a profile: targets, then shares, each in a worker process of its own, then batches.

Owns the order, the files while they are written, and what becomes of failures: one that ends a share or a target is
told and kept, and the rest is measured. On a CPU a share is a number of cores and as many engine threads.
"""

import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from efserve import __version__
from efserve.devices.cpu import available_cores, cpu_slug
from efserve.errors import EfserveError, InferenceFailed, MeasurementFailed, UsageError
from efserve.partition import Partition
from efserve.profiler import sampling
from efserve.profiler.options import ProfileConfig
from efserve.profiler.sampling import Feeder, Limits, Point
from efserve.profiler.targets import (
    Found,
    Target,
    batch_sizes,
    core_counts,
    find_targets,
    sha256_of,
    share_pct,
)
from efserve.profiles import ProfileFacts, ProfileFile, ProfileRow, parse_rows
from efserve.records import Machine, machine_facts
from efserve.worker.handle import Worker, WorkerFacts
from efserve.worker.spec import WorkerSpec

START_DEADLINE_S = 300.0
STOP_DRAIN_S = 2.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is; `remark` is a sentence for the user, often empty."""

    done_rows: int
    total_rows: int
    doing: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """What stands in the file of one target now: rows of this run and, where it resumed, of earlier ones."""

    target: Target
    facts: ProfileFacts
    rows: tuple[ProfileRow, ...]


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """The outcome of a run; `failures` has a sentence for each target or share that could not be measured."""

    device: str
    profiles: tuple[TargetProfile, ...]
    failures: tuple[str, ...]


def run(config: ProfileConfig, on_progress: Callable[[Progress], None]) -> ProfileResult:
    """Profile what the config asks for; a row is on the disk as soon as it is measured.

    Raises UsageError before anything is measured where the options contradict the repository, the machine or the files
    that are there. What fails later is in the result. KeyboardInterrupt ends the worker and leaves whole rows.
    """
    cores = available_cores()
    counts = core_counts(config, len(cores))
    machine = machine_facts()
    device = cpu_slug(machine.cpu_model, len(cores))
    found = find_targets(config, device)
    if not config.resume and not config.force:
        _check_unmeasured(found.targets)
    return asyncio.run(_Run(config, machine, cores, counts, on_progress).measure(found))


def _check_unmeasured(targets: Sequence[Target]) -> None:
    paths = [target.csv_path for target in targets if target.csv_path.exists()]
    measured = [path for path in paths if parse_rows(path.read_bytes(), str(path)).rows]
    if measured:
        more = f" and {len(measured) - 1} more" if len(measured) > 1 else ""
        raise UsageError(
            f"{measured[0]}{more}: measured before; --resume measures only what is missing, --force begins afresh"
        )


class _Run:
    """One run over all targets: how far it is and what failed."""

    def __init__(
        self,
        config: ProfileConfig,
        machine: Machine,
        cores: tuple[int, ...],
        counts: tuple[int, ...],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self._cores = cores  # of this machine
        self._counts = counts  # numbers of them to measure
        self._device = cpu_slug(machine.cpu_model, len(cores))
        self._on_progress = on_progress
        self._failures: list[str] = []
        self._done_rows = 0
        self._planned_rows: dict[str, int] = {}

    async def measure(self, found: Found) -> ProfileResult:
        """Measure every target; the result says what failed."""
        profiles = [_OpenProfile(target, self._config) for target in found.targets]
        for profile in profiles:
            self._planned_rows[profile.target.name] = len(self._counts) * len(profile.batches)
        for failure in found.failures:
            self._fail(failure)
        measured = [await self._measure_target(profile) for profile in profiles]
        return ProfileResult(self._device, tuple(m for m in measured if m is not None), tuple(self._failures))

    def _tell(self, doing: str, remark: str = "") -> None:
        self._on_progress(Progress(self._done_rows, sum(self._planned_rows.values()), doing, remark))

    def _fail(self, failure: str) -> None:
        self._failures.append(failure)
        self._tell("", failure)

    async def _measure_target(self, profile: "_OpenProfile") -> TargetProfile | None:
        name, done_before = profile.target.name, self._done_rows
        with ExitStack() as stack:
            try:
                for count in self._counts:
                    await self._measure_share(profile, count, stack)
            except EfserveError as error:
                self._fail(f"{name}: {one_line(str(error))}")
            self._planned_rows[name] = self._done_rows - done_before
            return profile.result()

    async def _measure_share(self, profile: "_OpenProfile", count: int, stack: ExitStack) -> None:
        """Measure what is missing of one share; a batch that fails ends the share, not the target."""
        batches = profile.missing(count)
        if not batches:
            return
        what = f"{profile.target.name} on {count} of {len(self._cores)} cores"
        self._tell(f"{what}: loading")
        spec = _worker_spec(profile.target, self._cores[:count], batches[-1])
        with _parent_on(self._cores[count:] or self._cores):
            async with _started(spec) as (worker, facts, feeder):
                if profile.file is None:
                    remark = profile.open(self._profile_facts(profile.target, facts), facts, stack)
                    self._planned_rows[profile.target.name] = sum(len(profile.missing(c)) for c in self._counts)
                    self._tell(f"{what}: loaded", remark)
                for batch in profile.missing(count):
                    self._tell(f"{what}, batch {batch}")
                    try:
                        row = await self._measure_row(worker, facts, feeder, batch)
                    except (InferenceFailed, MeasurementFailed) as error:
                        self._fail(f"{what}, batch {batch}: {one_line(str(error))}")
                        return
                    profile.append(row)
                    self._done_rows += 1
                    self._tell(f"{what}, batch {batch}")

    async def _measure_row(self, worker: Worker, facts: WorkerFacts, feeder: Feeder, batch: int) -> ProfileRow:
        request = sampling.random_request(facts.config, batch, self._config.shape)
        limits = Limits(self._config.min_repetitions, self._config.min_time_s)
        point = await sampling.measure(feeder, worker, request, limits, self._cores)
        return row_of(point, facts, batch, len(worker.spec.partition.cores), len(self._cores))

    def _profile_facts(self, target: Target, worker: WorkerFacts) -> ProfileFacts:
        shapes = sampling.input_shapes(worker.config, self._config.shape)
        batch = ["batch"] if worker.config.batches else []
        return ProfileFacts(
            model=target.model.model,
            version=target.model.version,
            engine=target.model.engine,
            engine_version=worker.engine_version,
            model_file=target.file.name,
            model_sha256=sha256_of(target.file),
            inputs={
                spec.name: f"{spec.datatype} [{','.join([*batch, *map(str, shapes[spec.name])])}]"
                for spec in worker.config.inputs
            },
            device=self._device,
            cpu_model=self._machine.cpu_model,
            total_cores=len(self._cores),
            threads="one per core",
            min_repetitions=self._config.min_repetitions,
            min_time_s=self._config.min_time_s,
            efserve_version=__version__,
            kernel=self._machine.kernel,
            python=self._machine.python,
            libraries=self._machine.libraries,
            measured_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        )


class _OpenProfile:
    """The profile of one target while it is measured: its file, opened once a worker is READY, and what it lacks."""

    def __init__(self, target: Target, config: ProfileConfig) -> None:
        self.target = target
        self.batches = batch_sizes(config, target.model.config.max_batch_size)
        self.file: ProfileFile | None = None
        self._resume = config.resume

    def __repr__(self) -> str:
        return f"_OpenProfile({self.target.name}, file={self.file})"

    def open(self, facts: ProfileFacts, worker: WorkerFacts, stack: ExitStack) -> str:
        """Begin or go on with the file, closed by `stack`; a remark for the user, or "". UsageError as its parts."""
        if not worker.config.batches:
            self.batches = (1,)
        file = stack.enter_context(ProfileFile(self.target.csv_path))
        remark = ""
        if self._resume:
            remark = file.resume(facts)
        else:
            file.start(facts)
        self.file = file
        return remark

    def missing(self, cores: int) -> list[int]:
        """Batches of this share that are still to be measured, ascending."""
        have = {row.key for row in self.file.rows} if self.file else set()
        return [batch for batch in self.batches if (cores, batch) not in have]

    def append(self, row: ProfileRow) -> None:
        """Add a row to the open file."""
        assert self.file is not None
        self.file.append(row)

    def result(self) -> TargetProfile | None:
        """What the file holds; None when nothing was measured."""
        if self.file is None or self.file.facts is None or not self.file.rows:
            return None
        rows = sorted(self.file.rows, key=lambda row: row.key)
        return TargetProfile(self.target, self.file.facts, tuple(rows))


def row_of(point: Point, worker: WorkerFacts, batch: int, cores: int, total_cores: int) -> ProfileRow:
    """The row that a measured point gives; `docs/profile.md` has the formulas."""
    p50_ms, p90_ms, p99_ms = (float(value) for value in np.percentile(point.spans_ms, (50, 90, 99)))
    return ProfileRow(
        share_pct=share_pct(cores, total_cores),
        cores=cores,
        batch=batch,
        repetitions=len(point.spans_ms),
        mean_ms=round(statistics.fmean(point.spans_ms), 4),
        std_ms=round(statistics.pstdev(point.spans_ms), 4),
        p50_ms=round(p50_ms, 4),
        p90_ms=round(p90_ms, 4),
        p99_ms=round(p99_ms, 4),
        ci_pct=round(sampling.median_ci_pct(point.spans_ms), 2),
        roundtrip_ms=round(statistics.fmean(point.roundtrips_ms), 4),
        throughput_per_s=round(batch * point.batches_per_s, 2),
        utilization_pct=round(100 * point.cpu_s_per_s / cores, 1),
        others_pct=round(100 * point.others_cpu_s_per_s / total_cores, 1),
        peak_memory_mb=round(point.peak_memory_bytes / MB, 1),
        load_s=round(worker.load_s, 3),
        ready_s=round(worker.start_s, 3),
    )


def one_line(reason: str) -> str:
    """The first line of a reason, and the last of a traceback below it unless that says the same."""
    first, *rest = [line.strip() for line in reason.splitlines() if line.strip()] or [""]
    head, _, _ = first.partition("; its last lines of output")
    if not rest or rest[-1].endswith(head):
        return head
    return f"{head}: {rest[-1]}"


def _worker_spec(target: Target, cores: tuple[int, ...], max_batch: int) -> WorkerSpec:
    return WorkerSpec(
        config=target.model.config,
        version=target.model.version,
        folder=target.model.folder,
        engine=target.model.engine,
        partition=Partition(threads=len(cores), cores=cores),
        max_batch=max_batch,
        force_max_batch=max_batch,
        warmup=False,  # each batch is warmed up before it is measured, so that peak memory grows with the batch
    )


@asynccontextmanager
async def _started(spec: WorkerSpec) -> AsyncIterator[tuple[Worker, WorkerFacts, Feeder]]:
    feeder = Feeder()
    worker = Worker(spec, on_done=feeder.on_done, on_death=feeder.on_death)
    try:
        facts = await worker.start(START_DEADLINE_S)
        yield worker, facts, feeder
    finally:
        await worker.stop(STOP_DRAIN_S)


@contextmanager
def _parent_on(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep this process on these cores meanwhile, so that it stays off those being measured where it can."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
