"""What `efserve bench --cold` found out: starts of a server in phases, and its result file."""

from dataclasses import dataclass

from efserve.records import Machine

# Name of each phase and what it is, in the order of time; together they are `ready_s`.
PHASES = {
    "server_s": "server: interpreter, imports, ports",
    "worker_s": "worker: interpreter, imports",
    "engine_s": "worker: import of the engine's library",
    "load_s": "worker: load of the model",
    "warmup_s": "worker: warm-up of every batch size",
    "rest_s": "messages, the instances' differences",
}


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One start, in seconds; of several instances, the phases of the one that was ready last."""

    ready_s: float  # from the start of the process to READY
    server_s: float
    worker_s: float
    engine_s: float
    load_s: float
    warmup_s: float
    rest_s: float
    first_ms: float  # latency of the first inference
    warm_ms: float  # median latency of those after it


@dataclass(frozen=True, slots=True)
class ColdResult:
    """All starts of one model; the first, which may optimize the model for those after it, is told apart."""

    schema_version: int
    kind: str  # "cold"
    efserve_version: str
    started_at: str  # ISO 8601, UTC
    machine: Machine
    config: dict[str, object]
    model: str
    engine: str
    first: ColdStart
    starts: tuple[ColdStart, ...]
    interrupted: bool
