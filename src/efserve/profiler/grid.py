"""Runs over the grid of a profile: targets, then shares, each in a worker process of its own, then batches.

Owns the order, the files while they are written, and what becomes of failures: one that ends a share or a target is
told and kept, and the rest is measured.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from efserve.errors import EfserveError, InferenceFailed, MeasurementFailed, UsageError
from efserve.profiler import sampling
from efserve.profiler.devices import able_to_share, device_for
from efserve.profiler.options import ProfileConfig
from efserve.profiler.progress import Progress
from efserve.profiler.rows import facts_of, row_of
from efserve.profiler.sampling import Feeder, Limits
from efserve.profiler.shares import Device, Share
from efserve.profiler.targets import Found, Target, batch_sizes, find_targets
from efserve.profiler.workers import parent_on, started, worker_spec
from efserve.profiles import ProfileFacts, ProfileFile, ProfileRow, parse_rows
from efserve.reasons import in_one_line
from efserve.records import Machine, machine_facts
from efserve.worker.handle import Worker, WorkerFacts


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
    machine = machine_facts()
    device = device_for(config, machine)
    device.shares(config)  # before anything is started: what is wrong with them is the user's to know first
    found = find_targets(config, device.facts.slug)
    if not config.resume and not config.force:
        _check_unmeasured(found.targets)
    with able_to_share(device, config) as ready:
        return asyncio.run(_Run(config, machine, ready, ready.shares(config), on_progress).measure(found))


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
        device: Device,
        shares: Sequence[Share],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self._device = device
        self._shares = shares
        self._on_progress = on_progress
        self._failures: list[str] = []
        self._done_rows = 0
        self._planned_rows: dict[str, int] = {}

    async def measure(self, found: Found) -> ProfileResult:
        """Measure every target; the result says what failed."""
        profiles = [_OpenProfile(target, self._config) for target in found.targets]
        for profile in profiles:
            self._planned_rows[profile.target.name] = len(self._shares) * len(profile.batches)
        for failure in found.failures:
            self._fail(failure)
        measured = [await self._measure_target(profile) for profile in profiles]
        return ProfileResult(
            self._device.facts.slug, tuple(m for m in measured if m is not None), tuple(self._failures)
        )

    def _tell(self, doing: str, remark: str = "") -> None:
        self._on_progress(Progress(self._done_rows, sum(self._planned_rows.values()), doing, remark))

    def _fail(self, failure: str) -> None:
        self._failures.append(failure)
        self._tell("", failure)

    async def _measure_target(self, profile: "_OpenProfile") -> TargetProfile | None:
        name, done_before = profile.target.name, self._done_rows
        with ExitStack() as stack:
            try:
                for share in self._shares:
                    await self._measure_share(profile, share, stack)
            except EfserveError as error:
                self._fail(f"{name}: {in_one_line(str(error))}")
            self._planned_rows[name] = self._done_rows - done_before
            return profile.result()

    async def _measure_share(self, profile: "_OpenProfile", share: Share, stack: ExitStack) -> None:
        """Measure what is missing of one share; a batch that fails ends the share, not the target."""
        batches = profile.missing(share)
        if not batches:
            return
        what = f"{profile.target.name} on {share.name}"
        self._tell(f"{what}: loading")
        spec = worker_spec(profile.target, share, batches[-1])
        all_cores = self._device.facts.cores
        others = tuple(core for core in all_cores if core not in share.partition.cores)
        with parent_on(others or all_cores):
            async with started(spec) as (worker, facts, feeder):
                if profile.file is None:
                    profile_facts = facts_of(profile.target, facts, self._device.facts, self._machine, self._config)
                    remark = profile.open(profile_facts, facts, stack)
                    self._planned_rows[profile.target.name] = sum(len(profile.missing(s)) for s in self._shares)
                    warnings = [f"{profile.target.name}: {told.text}" for told in facts.remarks if told.is_warning]
                    for text in (remark, *warnings):
                        self._tell(f"{what}: loaded", text)
                await self._measure_batches(profile, share, what, (worker, facts, feeder))

    async def _measure_batches(
        self, profile: "_OpenProfile", share: Share, what: str, started: tuple[Worker, WorkerFacts, Feeder]
    ) -> None:
        worker, facts, feeder = started
        gauge = self._device.gauge(share)
        limits = Limits(self._config.min_repetitions, self._config.min_time_s)
        all_cores = self._device.facts.cores
        batch = 1
        try:
            first_ms = await self._first_ms(worker, facts, feeder)
            for batch in profile.missing(share):
                self._tell(f"{what}, batch {batch}")
                request = sampling.random_request(facts.config, batch, self._config.shape)
                point = await sampling.measure(feeder, worker, request, limits, all_cores, gauge)
                profile.append(row_of(point, facts, batch, share, len(all_cores), first_ms))
                self._done_rows += 1
                self._tell(f"{what}, batch {batch}")
        except (InferenceFailed, MeasurementFailed) as error:
            self._fail(f"{what}, batch {batch}: {in_one_line(str(error))}")

    async def _first_ms(self, worker: Worker, facts: WorkerFacts, feeder: Feeder) -> float:
        """How long the very first batch takes, of one row: what a client meets that comes right after READY."""
        request = sampling.random_request(facts.config, 1, self._config.shape)
        (first,) = await feeder.feed(worker, request, 1, 1, 0.0)
        return first.roundtrip_ms


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

    def missing(self, share: Share) -> list[int]:
        """Batches of this share that are still to be measured, ascending."""
        have = {row.key for row in self.file.rows} if self.file else set()
        return [batch for batch in self.batches if (share.pct, batch) not in have]

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
