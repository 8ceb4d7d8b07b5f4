"""The facts of planning: demands, capacity tables, devices, and the plan as a value and as a file.

Owns no decision: policies make plans, `check.py` judges them. Latencies are of one batch, in ms; shares in percent of
one device; rates in requests per second, where a request is one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from efserve.errors import ClientError, ConfigError

SCHEMA = 1
MEMORY_LIMIT_PCT = 90.0  # of a device's memory may be planned
LEAST_PER_S = 0.001  # is planned for
MAX_TENANTS = 3  # models that share one partition in time, but for the policy `temporal`


def engine_and_precision(engine: str) -> tuple[str, str]:
    """`onnx:int8`, an engine as plans name it, in its parts; no precision where the model's own file runs.

    With a precision it is the model called `<name>_<precision>` that runs, in the place of the one that is asked for.
    """
    name, _, precision = engine.partition(":")
    return name, precision


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model must carry."""

    model: str
    rate_per_s: float
    slo_ms: float


@dataclass(frozen=True, slots=True)
class Point:
    """A measured way to run a model: `processes` of it side by side on a share, each with batches of `batch`.

    `latency_ms`, the 99th percentile where percentiles are known, is what plans count on; the others are for the
    simulator.
    """

    share_pct: float
    batch: int
    processes: int
    throughput_per_s: float  # of all processes together
    latency_ms: float
    memory_mb: float = 0.0  # of all processes together; 0: not known
    utilization_pct: float = 0.0
    mean_ms: float = 0.0  # of the same batch; 0: as `latency_ms`
    std_ms: float = 0.0
    p50_ms: float = 0.0  # 0: not known, as is `p90_ms`
    p90_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one model can do with one engine on one kind of device."""

    model: str
    engine: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """One device; `memory_mb` 0: not known, so not a limit."""

    name: str
    kind: str
    memory_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """One model on a partition. `rate_per_s` is its part of the model's rate, `worst_ms` its worst latency.

    `row_ms` is how long a batch of one takes; 0: not known.
    """

    model: str
    engine: str
    batch: int
    processes: int
    rate_per_s: float
    capacity_per_s: float
    latency_ms: float
    worst_ms: float
    row_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """A partition of a device and the models that run there in turn, each once in `cycle_ms`.

    A model that is alone never waits for its turn: its cycle is the latency of its batch.
    """

    device: str
    share_pct: float
    cycle_ms: float
    tenants: tuple[Tenant, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All placements, and what they were made for."""

    policy: str
    devices: tuple[Device, ...]
    demands: tuple[Demand, ...]
    placements: tuple[Placement, ...]
    max_partitions: int = 0  # per device; 0: no limit
    headroom_pct: float = 0.0
    schema: int = SCHEMA

    @property
    def used_devices(self) -> tuple[str, ...]:
        """Names of the devices that hold a placement, in the order of `devices`."""
        used = {placement.device for placement in self.placements}
        return tuple(device.name for device in self.devices if device.name in used)


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that a policy is told. All devices are of one kind, to which the capacities belong."""

    demands: tuple[Demand, ...]
    capacities: tuple[Capacity, ...]
    devices: tuple[Device, ...]
    max_partitions: int = 0
    headroom_pct: float = 0.0
    objective: str = "devices"
    budget_s: float = 5.0
    arrivals: str = "constant"  # or poisson: partitions are then loaded only so far that bursts rarely make them late

    @property
    def memory_mb(self) -> float:
        """What may be planned on one device; infinite when not known."""
        known = [device.memory_mb for device in self.devices if device.memory_mb]
        return min(known) * MEMORY_LIMIT_PCT / 100 if known else float("inf")

    def wanted_per_s(self, demand: Demand) -> float:
        """The rate to plan for: the demand's with the headroom on top, and enough not to be lost in rounding."""
        return max(LEAST_PER_S, demand.rate_per_s * (1 + self.headroom_pct / 100))


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why one model's demand cannot be met, and the nearest that can."""

    model: str
    reason: str
    nearest: Demand | None = None  # None: nothing at all can be promised


class NoPlan(ClientError):
    """The demands cannot be met; `shortfalls` tells why, for each model that is concerned."""

    def __init__(self, shortfalls: Sequence[Shortfall]) -> None:
        models: dict[str, list[str]] = {}
        for shortfall in shortfalls:
            models.setdefault(shortfall.reason, []).append(shortfall.model)
        super().__init__("; ".join(f"{_names(names)}: {reason}" for reason, names in models.items()))
        self.shortfalls = tuple(shortfalls)


def count_of(devices: Sequence[Device]) -> str:
    """How many devices, in words."""
    return "1 device" if len(devices) == 1 else f"{len(devices)} devices"


def _names(models: Sequence[str]) -> str:
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return ", ".join(models[:5]) + more


def plan_json(plan: Plan) -> bytes:
    """The plan as its file."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises ConfigError where it cannot be read or is no plan of this schema."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as exc:
        raise ConfigError(f"cannot read plan {path}: {exc.strerror}; `efserve plan -o` writes one") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path} is no plan: {exc}") from exc
    if plan.schema != SCHEMA:
        raise ConfigError(f"{path} is a plan of schema {plan.schema}; this version reads schema {SCHEMA}")
    return plan
