"""Which partition each instance of each model has, for as long as the server runs.

What the command line gives a model is kept for it from the start, loaded or not. What a config asks for is given when
the model is loaded and is free again when it has gone. A reload keeps the partitions unless the model asks anew.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efserve.asks import Ask, Wishes, asks_of, served_groups
from efserve.engines.base import can_use_gpus
from efserve.errors import EfserveError, UsageError
from efserve.model_config import ModelConfig
from efserve.partition import CPU, Partition
from efserve.placing import place
from efserve.planning.plan import read_plan
from efserve.repository import ModelFolder, ModelVersion
from efserve.room import Room
from efserve.server.options import ServeConfig
from efserve.server.planned import PlannedModel, place_plan


@dataclass(frozen=True, slots=True)
class Allotted:
    """What a model has asked for, what it has got, and how its config tells it."""

    config: ModelConfig
    asks: tuple[Ask, ...]
    partitions: tuple[Partition, ...]
    planned: PlannedModel | None = None  # where a plan says what each of them runs

    def of(self, version: ModelVersion) -> ModelVersion:
        """The version with the instance groups as they are served."""
        return replace(version, config=replace(version.config, instance_groups=self.config.instance_groups))


class Allotment:
    """The partitions of all models of one server. `find_room` is asked once, when the first model is placed."""

    def __init__(self, options: ServeConfig, find_room: Callable[[], Room]) -> None:
        self.notes: tuple[str, ...] = ()  # what the user should know of the start's placing
        self._options = options
        self._find_room = find_room
        self._known_room: Room | None = None
        self._models: dict[str, Allotted] = {}

    def __repr__(self) -> str:
        return f"<Allotment {', '.join(self._models) or 'empty'}>"

    def arrange(self, folders: Iterable[ModelFolder]) -> dict[str, EfserveError]:
        """Places the models of the start, and the shares of models that may come later; the errors of single models.

        Raises UsageError for shares that this machine does not have, or a plan that does not fit it.
        """
        if self._options.plan is not None:
            self._arrange_plan(self._options.plan, folders)
            return {}
        configs = {folder.name: folder.config for folder in folders}
        engines = {folder.name: _engine(folder, self._options) for folder in folders}
        for share in self._options.share:
            configs.setdefault(share.model, ModelConfig(share.model))
        asks: dict[str, tuple[Ask, ...]] = {}
        served: dict[str, ModelConfig] = {}
        errors: dict[str, EfserveError] = {}
        for name, config in configs.items():
            try:
                asks[name], served[name] = self._asks(config, engines.get(name, ""))
            except UsageError:
                raise
            except EfserveError as exc:
                errors[name] = exc
        placed = place([ask for wanted in asks.values() for ask in wanted], self._room)
        self.notes = (*placed.notes, *_without_effect(self._options, asks))
        self._models = {name: Allotted(served[name], asks[name], placed.partitions[name]) for name in asks}
        return errors

    def _arrange_plan(self, path: Path, folders: Iterable[ModelFolder]) -> None:
        placed = place_plan(read_plan(path), self._options.late, self._room)
        self.notes = placed.notes
        configs = {folder.name: folder.config for folder in folders}
        for name, (planned, partitions) in placed.models.items():
            if name in configs:
                self._models[name] = Allotted(configs[name], (), partitions, planned)

    def held(self, name: str) -> Allotted | None:
        """What a model has now."""
        return self._models.get(name)

    def allot(self, folder: ModelFolder) -> Allotted:
        """Partitions for a model that is loaded now, beside those of the others; those that it has, if they fit.

        Raises UsageError or ConfigError where it cannot have what it asks for; then nothing has changed.
        """
        asks, config = self._asks(folder.config, _engine(folder, self._options))
        before = self._models.get(folder.name)
        if before is not None and before.asks == asks:
            allotted = Allotted(config, asks, before.partitions)
        else:
            others = {name: given.partitions for name, given in self._models.items() if name != folder.name}
            allotted = Allotted(config, asks, place(asks, self._room, others).partitions[folder.name])
        self._models[folder.name] = allotted
        return allotted

    def restore(self, name: str, before: Allotted | None) -> None:
        """A load has failed: the model has what it had."""
        if before is None:
            self._models.pop(name, None)
        else:
            self._models[name] = before

    def release(self, name: str, given: Allotted | None) -> None:
        """A model has gone: what it had is free, unless the command line keeps it or it has been loaded again."""
        if self._models.get(name) is given and all(share.model != name for share in self._options.share):
            self._models.pop(name, None)

    @property
    def _room(self) -> Room:
        if self._known_room is None:
            self._known_room = self._find_room()
        return self._known_room

    def _asks(self, config: ModelConfig, engine: str) -> tuple[tuple[Ask, ...], ModelConfig]:
        options = self._options
        limits = [limit.limit_bytes for limit in options.memory_limit if limit.model == config.name]
        wishes = Wishes(
            shares=tuple(share for share in options.share if share.model == config.name),
            memory_limit_bytes=limits[-1] if limits else 0,
            instances=options.instances or 0,
            threads=options.threads or 0,
            can_use_gpus=bool(self._room.gpus) and can_use_gpus(engine),  # in this order: packages are slow to ask
        )
        asks = asks_of(config, wishes, self._room)
        return asks, replace(config, instance_groups=served_groups(config, wishes, asks, self._room))


def check_names(options: ServeConfig, names: Sequence[str]) -> None:
    """Raise UsageError for a share or a memory limit of a model that is none of `names`."""
    for option, given in (("--share", options.share), ("--memory-limit", options.memory_limit)):
        for item in given:
            if item.model not in names:
                known = ", ".join(names) or "none"
                raise UsageError(f"{option} is for model '{item.model}', which is not served; the models are: {known}")


def _without_effect(options: ServeConfig, asks: Mapping[str, Sequence[Ask]]) -> Iterator[str]:
    """Options that models with a share do not follow."""
    by_hand = sorted({share.model for share in options.share})
    if options.instances and by_hand:
        yield f"--instances is not for {', '.join(by_hand)}: each --share is one instance"
    pinned = [name for name, wanted in asks.items() if any(ask.device == CPU and ask.share_pct for ask in wanted)]
    if options.threads and pinned:
        yield f"--threads is not for {', '.join(pinned)}: an engine has as many threads as its share has cores"


def _engine(folder: ModelFolder, options: ServeConfig) -> str:
    """What will run the model, as far as can be told without raising."""
    latest = folder.served_versions()[-1:]
    asked = options.engine_for(folder, *latest) if latest else options.engine
    return asked or folder.config.engine or next(iter(folder.engines(*latest) if latest else ()), "")
