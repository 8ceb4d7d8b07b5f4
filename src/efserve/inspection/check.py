"""Validates a model repository without serving it: each version is loaded once, in a worker as a server has it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from efserve.asks import Wishes, asks_of
from efserve.engines.base import can_use_gpus
from efserve.errors import EfserveError
from efserve.inspection.explain import Field, Place, fields, surprises
from efserve.model_config import DEFAULT_MAX_BATCH
from efserve.placing import place
from efserve.precision import describe
from efserve.repository import ModelFolder, read_labels, scan
from efserve.room import Room, room_here
from efserve.worker.handle import Worker
from efserve.worker.spec import WorkerSpec

_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class CheckJob:
    """What to check, and as what server; None and "" mean: as the model's own config or this machine says."""

    model_repository: tuple[Path, ...] = (Path("model_dir"),)
    model: tuple[str, ...] = ()
    engine: str = ""
    instances: int | None = None
    threads: int | None = None
    strict_provider: bool = False
    load_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What came out for one version; `error` is empty when it can be served."""

    model: str
    version: str = ""
    error: str = ""
    fields: tuple[Field, ...] = ()
    surprises: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # of the engine: how the model runs
    load_s: float = 0.0  # engine and file
    warmup_s: float = 0.0
    rss_bytes: int = 0  # of one worker


async def check(job: CheckJob) -> list[Checked]:
    """Every version that would be served, one after the other; errors as `scan` raises them."""
    found = scan(job.model_repository, job.model)
    results = [Checked(name, error=str(error)) for name, error in found.errors.items()]
    room = room_here()
    for folder in found.models:
        results.extend([await _check_version(job, folder, number, room) for number in _versions(folder)])
        if not folder.served_versions():
            selected = f"version_policy selects none of the versions {list(folder.versions)}"
            results.append(Checked(folder.name, error=selected))
    return sorted(results, key=lambda result: (result.model, result.version))


def _versions(folder: ModelFolder) -> Iterable[int]:
    return reversed(folder.served_versions())


async def _check_version(job: CheckJob, folder: ModelFolder, number: int, room: Room) -> Checked:
    try:
        read_labels(folder.path, folder.config)
        version = folder.resolve(number, job.engine)
        wishes = Wishes((), 0, job.instances or 0, job.threads or 0, can_use_gpus(version.engine))
        asks = asks_of(folder.config, wishes, room)
        placed = place(asks, room)
        partitions = placed.partitions[folder.name]
        spec = WorkerSpec(
            config=version.config,
            version=version.version,
            folder=version.folder,
            engine=version.engine,
            partition=partitions[0],
            max_batch=DEFAULT_MAX_BATCH,
            strict_provider=job.strict_provider,
        )
        served_on = Place(partitions, sum(map(len, room.usable)), placed.notes, job.instances is not None)
        return await _load(spec, folder, served_on, job.load_timeout_s)
    except EfserveError as exc:
        return Checked(folder.name, str(number), error=str(exc))


async def _load(spec: WorkerSpec, folder: ModelFolder, place: Place, deadline_s: float) -> Checked:
    worker = Worker(spec, on_done=lambda *_: None, on_death=lambda *_: None)
    try:
        facts = await worker.start(deadline_s)
        rss_bytes = worker.rss_bytes()
    finally:
        await worker.stop(_STOP_S)
    served = replace(facts.config, engine=spec.engine)
    has_file = (folder.path / "config.pbtxt").is_file()
    return Checked(
        model=folder.name,
        version=spec.version,
        fields=tuple(fields(spec.config, served, place, has_file=has_file)),
        surprises=(*surprises(served, place), *(each.text for each in facts.remarks if each.is_warning)),
        remarks=(*(each.text for each in facts.remarks if not each.is_warning), *describe(spec.folder)),
        load_s=facts.load_s,
        warmup_s=facts.warmup_s,
        rss_bytes=rss_bytes,
    )
