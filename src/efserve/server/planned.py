"""A plan on this machine: which partition each of its workers gets, and what a served version must know of its plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from efserve.asks import Ask
from efserve.devices.cpu import cpu_model, cpu_slug, usable_cores_here
from efserve.errors import LoadFailed, UsageError
from efserve.model_config import ModelConfig
from efserve.partition import CPU, Partition
from efserve.placing import place
from efserve.planned import PlannedWorker, planned_config, planned_router, planned_workers
from efserve.planning.plan import Plan, engine_and_precision
from efserve.repository import ModelFolder, ModelVersion, read_model
from efserve.room import Room
from efserve.routing import Action, Router, pass_on
from efserve.turns import Terms, Turns
from efserve.worker.spec import WorkerSpec

CPU_KIND = "cpu-"  # how kinds of devices begin that are processors


class Carriers:
    """Who carries out what a router decides when another model has given its turn back; one for a whole plan."""

    def __init__(self) -> None:
        self._of: dict[Router, Callable[[Sequence[Action]], None]] = {}

    def enlist(self, router: Router, carry_out: Callable[[Sequence[Action]], None]) -> None:
        """Remember whom to tell."""
        self._of[router] = carry_out

    def pass_on(self, turns: Turns, now_ns: int) -> None:
        """A shared partition is free: the next batch begins there."""
        for router, actions in pass_on(turns, now_ns):
            self._of[router](actions)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """One model of a plan that is served: its workers, in the order of its partitions."""

    name: str
    workers: tuple[PlannedWorker, ...]
    slo_ms: float
    late: str
    carriers: Carriers
    files: dict[str, ModelVersion] = field(default_factory=dict)  # by engine, as the plan names it

    @property
    def engines(self) -> tuple[str, ...]:
        """What runs the model, on one partition or another."""
        return tuple(dict.fromkeys(worker.facts.engine for worker in self.workers))

    @property
    def rows(self) -> int:
        """Of the largest batch of any worker."""
        return max(worker.terms.rows for worker in self.workers)

    def spec(self, at: int, spec: WorkerSpec) -> WorkerSpec:
        """The spec of the `at`-th worker, whose file must be known."""
        found = self.files[self.workers[at].facts.engine]
        return replace(
            spec,
            config=found.config,
            version=found.version,
            folder=found.folder,
            engine=found.engine,
            force_max_batch=self.rows,
            slots=1,
        )

    def config(self, config: ModelConfig) -> ModelConfig:
        """The model's config as it is served, from that of any of its workers."""
        return planned_config(replace(config, name=self.name), self.rows)

    def with_files(self, folder: ModelFolder, folders: Mapping[str, Path]) -> "PlannedModel":
        """The model with the files of its engines, out of its own folder and those of its other precisions.

        Raises LoadFailed or ConfigError where one is not there, or takes other tensors.
        """
        files = {}
        for asked in self.engines:
            engine, precision = engine_and_precision(asked)
            source = folder
            if precision:
                path = folders.get(f"{folder.name}_{precision}")
                if path is None:
                    raise LoadFailed(f"the plan wants '{folder.name}' in {precision}; `efserve convert` makes one")
                source = read_model(path)
                if (source.config.inputs, source.config.outputs) != (folder.config.inputs, folder.config.outputs):
                    raise LoadFailed(f"'{source.name}' takes or gives other tensors than '{folder.name}'")
            numbers = source.served_versions() or source.versions
            files[asked] = source.resolve(numbers[-1], engine)
        return replace(self, files=files)

    def router(self, config: ModelConfig, carry_out: Callable[[Sequence[Action]], None]) -> Router:
        """The model's router, whose turns `carry_out` is told of."""
        router = planned_router(config, self.slo_ms, self.late)
        self.carriers.enlist(router, carry_out)
        return router

    def terms(self, at: int) -> Terms:
        """Those of the `at`-th worker."""
        return self.workers[at].terms

    def ended(self, at: int, now_ns: int) -> None:
        """The `at`-th worker's batch, or the worker itself, has ended: who shares its partition may go on."""
        turns = self.workers[at].terms.turns
        if turns is not None:
            self.carriers.pass_on(turns, now_ns)


@dataclass(frozen=True, slots=True)
class PlacedPlan:
    """The models of a plan with the partitions of their workers, and what the user should know."""

    models: dict[str, tuple[PlannedModel, tuple[Partition, ...]]]
    notes: tuple[str, ...] = ()


def place_plan(plan: Plan, late: str, room: Room) -> PlacedPlan:
    """Gives each placement of a plan its part of this machine; UsageError where it does not have it."""
    devices, notes = _devices_here(plan, room)
    labels = ["+".join(tenant.model for tenant in placement.tenants) for placement in plan.placements]
    asks = [
        Ask(label, devices[placement.device], placement.share_pct)
        for label, placement in zip(labels, plan.placements, strict=True)
    ]
    placed = place(asks, room)
    waiting = {label: iter(partitions) for label, partitions in placed.partitions.items()}
    partitions = [next(waiting[label]) for label in labels]
    carriers = Carriers()
    slos_ms = {demand.model: demand.slo_ms for demand in plan.demands}
    models = {
        name: (
            PlannedModel(name, tuple(workers), slos_ms[name], late, carriers),
            tuple(partitions[worker.placement] for worker in workers),
        )
        for name, workers in planned_workers(plan).items()
    }
    return PlacedPlan(models, (*notes, *placed.notes))


def _devices_here(plan: Plan, room: Room) -> tuple[dict[str, str], tuple[str, ...]]:
    """Each device of the plan that is used -> a device of this machine; and whether it is of another kind."""
    used = plan.used_devices
    kinds = {device.name: device.kind for device in plan.devices}
    if not used:
        raise UsageError("the plan places nothing: there is nothing to serve")
    processors = [name for name in used if kinds[name].startswith(CPU_KIND)]
    cards = [name for name in used if name not in processors]
    if len(processors) > 1:
        raise UsageError(f"the plan uses {len(processors)} processors, and a server has one: plan with --devices 1")
    if len(cards) > len(room.gpus):
        raise UsageError(f"the plan uses {len(cards)} GPUs, and efserve finds {len(room.gpus)} on this machine")
    here = cpu_slug(cpu_model(), usable_cores_here())
    notes = tuple(
        f"the plan is for {kinds[name]}, and this machine is {here}: its latencies may be others"
        for name in processors
        if kinds[name] != here
    )
    cards_here = {name: gpu.uuid for name, gpu in zip(cards, room.gpus, strict=False)}
    return dict.fromkeys(processors, CPU) | cards_here, notes
