"""Runs pairs of models side by side on complementary shares, each saturated, and alone in between.

Owns the order and the workers. Every round measures each side alone and both together shortly after one another, so
that what disturbs the machine for longer than a round cancels out. The arithmetic is in `pairing.py`.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from pathlib import Path

from efserve import __version__
from efserve.errors import EfserveError, InferenceFailed, MeasurementFailed, UsageError
from efserve.inference import InferRequest
from efserve.pairs import Load, MeasuredPair, PairFacts, PairModel, Pairs, PairsFile, pairs_path
from efserve.profiler import pairing, sampling
from efserve.profiler.devices import able_to_share, device_for
from efserve.profiler.gauges import Gauge
from efserve.profiler.options import DEFAULT_MAX_BATCH, ProfileConfig
from efserve.profiler.pairing import Round, Slowdown, Stretch
from efserve.profiler.progress import Progress
from efserve.profiler.rows import inputs_text, now_text
from efserve.profiler.sampling import Batch, CpuTimes, Feeder
from efserve.profiler.shares import Device, Share
from efserve.profiler.targets import Target, find_targets, sha256_of
from efserve.profiler.workers import parent_on, started, worker_spec
from efserve.reasons import in_one_line
from efserve.records import Machine, machine_facts
from efserve.worker.handle import Worker, WorkerFacts

BATCHES = (1, 8)  # and the maximum, where no others are asked for
PHASE_REPETITIONS = 3  # batches of each side in a phase, at least

Split = tuple[Share, Share]


@dataclass(frozen=True, slots=True)
class PairsResult:
    """The outcome of a run: what stands in the file now, and a sentence for each model or pair that failed."""

    path: Path
    content: Pairs | None
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Side:
    """One of two workers that run side by side."""

    target: Target
    share: Share
    worker: Worker
    facts: WorkerFacts
    feeder: Feeder
    inputs: dict[str, str]
    gauge: Gauge


@dataclass(frozen=True, slots=True)
class _Point:
    """A side with the batch that it runs now."""

    side: _Side
    batch: int
    request: InferRequest

    def key(self, other: "_Point") -> tuple[object, ...]:
        """That of this side's measurement beside the other."""
        mine, yours = self.side, other.side
        return (_name(mine.target), mine.share.pct, self.batch, _name(yours.target), yours.share.pct, other.batch)

    async def run_alone(self, time_s: float) -> Stretch:
        """Keep the worker busy while the other is idle."""
        side = self.side
        side.gauge.look(side.worker.pid)
        batches, cpu_ms = await self.run(time_s)
        return pairing.stretch(batches, cpu_ms, side.gauge.look(side.worker.pid).dram_util_pct)

    async def run(self, time_s: float, partner: Feeder | None = None) -> tuple[list[Batch], float | None]:
        """Keep the worker busy for so long, with one batch running and one waiting; also the processor ms of each."""
        side = self.side
        before_s = sampling.processor_s(side.worker.pid)
        batches = await side.feeder.feed(side.worker, self.request, 2, PHASE_REPETITIONS, time_s, partner)
        after_s = sampling.processor_s(side.worker.pid)
        if before_s is None or after_s is None or side.share.partition.is_gpu:
            return batches, None
        return batches, 1000 * (after_s - before_s) / len(batches)


def run(config: ProfileConfig, on_progress: Callable[[Progress], None]) -> PairsResult:
    """Measure each pair of models that the config selects, each also beside itself.

    A pair is on the disk as soon as it is measured. Raises UsageError before anything is measured where the options
    contradict the machine or the file that is there. KeyboardInterrupt ends the workers and keeps whole pairs.
    """
    machine = machine_facts()
    device = device_for(config, machine)
    device.splits(config)  # before anything is started: what is wrong with them is the user's to know first
    found = find_targets(config, device.facts.slug)
    path = pairs_path(config.output, device.facts.slug)
    if path.exists() and not config.resume and not config.force:
        raise UsageError(f"{path}: measured before; --resume measures only what is missing, --force begins afresh")
    with PairsFile(path, keep=config.resume) as file, able_to_share(device, config) as ready:
        measuring = _Run(config, machine, ready, file, on_progress)
        targets = one_engine_each(found.targets)
        return asyncio.run(measuring.measure(targets, ready.splits(config), found.failures))


def one_engine_each(targets: Sequence[Target]) -> list[Target]:
    """A target for each model: of the engine that its config names, else of the first."""
    chosen: dict[str, Target] = {}
    for target in targets:
        if _name(target) not in chosen or target.model.engine == target.model.config.engine:
            chosen[_name(target)] = target
    return list(chosen.values())


def points_of(first: Sequence[int], second: Sequence[int], *, alike: bool) -> list[tuple[int, int]]:
    """Batches of either side; where the sides are `alike` (one model on equal shares) each two of them once."""
    return [(mine, yours) for mine in first for yours in second if not alike or mine <= yours]


def pair_batches(config: ProfileConfig, model_max_batch: int) -> tuple[int, ...]:
    """Batches to measure, ascending: those asked for, else 1, 8 and the maximum."""
    if config.batches:
        return tuple(sorted(set(config.batches)))
    largest = config.max_batch or max(DEFAULT_MAX_BATCH, model_max_batch)
    return (*(batch for batch in BATCHES if batch < largest), largest)


class _Run:
    """One run over all pairs: how far it is and what failed."""

    def __init__(
        self,
        config: ProfileConfig,
        machine: Machine,
        device: Device,
        file: PairsFile,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self._device = device
        self._file = file
        self._on_progress = on_progress
        self._failures: list[str] = []
        self._broken: set[str] = set()  # models that cannot be loaded
        self._done = 0
        self._total = 0
        self._measured_at = now_text()

    async def measure(self, targets: Sequence[Target], splits: Sequence[Split], failures: Sequence[str]) -> PairsResult:
        """Measure every pair on every split; the result says what failed."""
        for failure in failures:
            self._fail(failure)
        pairs = list(combinations_with_replacement(targets, 2))
        jobs = [(first, second, split) for first, second in pairs for split in _distinct(splits, first is second)]
        planned = [self._planned(first, second, split) for first, second, split in jobs]
        self._total = sum(planned)
        end = 0
        for (first, second, split), count in zip(jobs, planned, strict=True):
            end += count
            await self._measure_pair(first, second, split)
            self._done = end  # also where some could not be measured
        return PairsResult(self._file.path, self._file.content, tuple(self._failures))

    def _planned(self, first: Target, second: Target, split: Split) -> int:
        alike = first is second and split[0].pct == split[1].pct
        return len(points_of(self._batches(first), self._batches(second), alike=alike))

    def _batches(self, target: Target, facts: WorkerFacts | None = None) -> tuple[int, ...]:
        if facts is not None and not facts.config.batches:
            return (1,)
        return pair_batches(self._config, target.model.config.max_batch_size)

    def _tell(self, doing: str, remark: str = "") -> None:
        self._on_progress(Progress(self._done, self._total, doing, remark))

    def _fail(self, failure: str) -> None:
        self._failures.append(failure)
        self._tell("", failure)

    async def _measure_pair(self, first: Target, second: Target, split: Split) -> None:
        """Measure what is missing of one pair on one split; a point that fails ends it, not the run."""
        what = f"{_name(first)} on {split[0].pct:g}% beside {_name(second)} on {split[1].pct:g}%"
        if self._broken & {_name(first), _name(second)}:
            return
        self._tell(f"{what}: loading")
        async with AsyncExitStack() as stack:
            sides = []
            for target, share in zip((first, second), split, strict=True):
                side = await self._started(target, share, stack)
                if side is None:
                    return
                sides.append(side)
            self._file.describe(self._facts(sides))
            for one, other in self._missing(*sides):
                doing = f"{_name(first)} {one.batch} beside {_name(second)} {other.batch}"
                self._tell(doing)
                try:
                    await self._measure_point(one, other)
                except (InferenceFailed, MeasurementFailed) as error:
                    self._fail(f"{what}, batches {one.batch} and {other.batch}: {in_one_line(str(error))}")
                    return
                self._done += 1
                self._tell(doing)

    async def _started(self, target: Target, share: Share, stack: AsyncExitStack) -> _Side | None:
        spec = worker_spec(target, share, self._batches(target)[-1])
        try:
            worker, facts, feeder = await stack.enter_async_context(started(spec))
            inputs = inputs_text(facts, self._config)
        except EfserveError as error:
            self._broken.add(_name(target))
            self._fail(f"{target.name}: {in_one_line(str(error))}")
            return None
        return _Side(target, share, worker, facts, feeder, inputs, self._device.gauge(share))

    def _missing(self, first: _Side, second: _Side) -> Iterator[tuple[_Point, _Point]]:
        alike = first.target is second.target and first.share.pct == second.share.pct
        for mine, yours in points_of(
            self._batches(first.target, first.facts), self._batches(second.target, second.facts), alike=alike
        ):
            one, other = self._point(first, mine), self._point(second, yours)
            if self._file.has([one.key(other), other.key(one)]):
                self._done += 1
            else:
                yield one, other

    def _point(self, side: _Side, batch: int) -> _Point:
        return _Point(side, batch, sampling.random_request(side.facts.config, batch, self._config.shape))

    async def _measure_point(self, one: _Point, other: _Point) -> None:
        for point in (one, other):
            await sampling.warm_up(point.side.feeder, point.side.worker, point.request)
        cores = self._device.facts.cores
        began = [CpuTimes.now(point.side.worker.pid, cores) for point in (one, other)]
        ones: list[Round] = []
        others: list[Round] = []
        while not (pairing.are_enough(ones) and pairing.are_enough(others)):
            mine, yours = await self._round(one, other, backwards=len(ones) % 2 == 1)
            ones.append(mine)
            others.append(yours)
        ended = [CpuTimes.now(point.side.worker.pid, cores) for point in (one, other)]
        foreign_s = ended[0].others_s - began[0].others_s - (ended[1].worker_s - began[1].worker_s)
        self._note_load(one.side, ones)
        self._note_load(other.side, others)
        others_pct = round(100 * max(0.0, foreign_s) / (ended[0].at_s - began[0].at_s) / len(cores), 1)
        if one.key(other) == other.key(one):
            self._file.add([_measured(one, other, pairing.summary([*ones, *others]), others_pct)])
            return
        self._file.add(
            [
                _measured(one, other, pairing.summary(ones), others_pct),
                _measured(other, one, pairing.summary(others), others_pct),
            ]
        )

    def _note_load(self, side: _Side, rounds: Sequence[Round]) -> None:
        """Keep the greatest load of the model, over its batches and shares."""
        assert self._file.content is not None
        name, dram = _name(side.target), pairing.dram_load([one.alone for one in rounds], side.share.pct)
        if dram > self._file.content.loads[name].dram:
            self._file.set_load(name, Load(dram=dram))

    async def _round(self, one: _Point, other: _Point, *, backwards: bool) -> tuple[Round, Round]:
        """Each side alone and both together; every other round in the opposite order."""
        time_s = self._config.min_time_s / pairing.MIN_ROUNDS
        alone: list[Stretch] = []
        both: list[Stretch] = []
        for phase in (None, other, one) if backwards else (one, other, None):
            with parent_on(self._parent_cores(one, other, phase)):
                if phase is not None:
                    alone.append(await phase.run_alone(time_s))
                    continue
                both = await self._both(one, other, time_s)
        mine, yours = reversed(alone) if backwards else alone
        return Round(mine, both[0]), Round(yours, both[1])

    async def _both(self, one: _Point, other: _Point, time_s: float) -> list[Stretch]:
        """Both sides at the same time. Where one fails the other ends by itself, before the failure is raised."""
        answers = await asyncio.gather(
            one.run(time_s, other.side.feeder), other.run(time_s, one.side.feeder), return_exceptions=True
        )
        told: list[tuple[list[Batch], float | None]] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            told.append(answer)
        ran = pairing.side_by_side(told[0][0], told[1][0])
        return [pairing.stretch(batches, cpu_ms) for batches, (_, cpu_ms) in zip(ran, told, strict=True)]

    def _parent_cores(self, one: _Point, other: _Point, alone: _Point | None) -> tuple[int, ...]:
        """Where this process keeps: off both sides where cores are left, else on those of whom it feeds.

        So a side pays for being fed when it is alone as it does beside the other.
        """
        taken = {core for point in (one, other) for core in point.side.share.partition.cores}
        spare = tuple(core for core in self._device.facts.cores if core not in taken)
        return spare or (alone.side.share.partition.cores if alone else self._device.facts.cores)

    def _facts(self, sides: Sequence[_Side]) -> PairFacts:
        device, machine = self._device.facts, self._machine
        return PairFacts(
            device=device.slug,
            cpu_model=machine.cpu_model,
            total_cores=len(device.cores),
            share_means=device.means,
            gpu=device.gpu,
            driver=device.driver,
            threads=device.threads,
            models={
                _name(side.target): PairModel(
                    version=side.target.model.version,
                    engine=side.target.model.engine,
                    engine_version=side.facts.engine_version,
                    model_sha256=sha256_of(side.target.file),
                    inputs=side.inputs,
                )
                for side in sides
            },
            min_time_s=self._config.min_time_s,
            efserve_version=__version__,
            kernel=machine.kernel,
            python=machine.python,
            libraries=machine.libraries,
            measured_at=self._measured_at,
        )


def _name(target: Target) -> str:
    return target.model.model


def _distinct(splits: Sequence[Split], with_itself: bool) -> list[Split]:
    """The splits to measure: of a model beside itself, one of two that mirror each other."""
    seen: set[frozenset[float]] = set()
    kept = []
    for split in splits:
        shares = frozenset(share.pct for share in split)
        if not with_itself or shares not in seen:
            kept.append(split)
        seen.add(shares)
    return kept


def _measured(mine: _Point, yours: _Point, found: Slowdown, others_pct: float) -> MeasuredPair:
    figures = asdict(found) | {
        "alone_per_s": round(found.alone_per_s * mine.batch, 2),
        "beside_per_s": round(found.beside_per_s * mine.batch, 2),
    }
    return MeasuredPair(
        me=_name(mine.side.target),
        my_pct=mine.side.share.pct,
        my_batch=mine.batch,
        you=_name(yours.side.target),
        your_pct=yours.side.share.pct,
        your_batch=yours.batch,
        others_pct=others_pct,
        **figures,
    )
