"""What is asked for: demands from options and workload files, applications split into their models.

    {"models": [{"model": "a", "rate": 100, "slo_ms": 30}],
     "applications": [{"rate": 20, "slo_ms": 80, "steps": {"detect": [], "crop": ["detect"], "read": ["crop"]}}]}

The same in YAML where the file is called .yaml or .yml. The steps of an application are models with those that each
waits for: a chain or a tree. Rates are in requests per second.
"""

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import msgspec

from efserve.errors import UsageError
from efserve.planning.plan import Capacity, Demand


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model of a workload file."""

    model: str
    rate: float
    slo_ms: float


class Application(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models that answer one request together, within one SLO."""

    rate: float
    slo_ms: float
    steps: dict[str, list[str]]  # model -> those whose answers it needs
    name: str = ""


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A workload file."""

    models: list[ModelEntry] = []
    applications: list[Application] = []


def read_workload(path: Path, capacities: Sequence[Capacity]) -> list[Demand]:
    """The demands of a workload file. Raises UsageError where it cannot be read or an application has a circle."""
    try:
        workload = _decoded(path)
    except OSError as exc:
        raise UsageError(f"cannot read workload {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        reason = " ".join(str(exc).split())
        raise UsageError(f"{path} is no workload: {reason}; docs/scheduling.md shows one") from exc
    demands = [Demand(entry.model, entry.rate, entry.slo_ms) for entry in workload.models]
    for application in workload.applications:
        demands += split(application, capacities)
    return demands


def _decoded(path: Path) -> Workload:
    data = path.read_bytes()
    if path.suffix.lower() not in (".yaml", ".yml"):
        return msgspec.json.decode(data, type=Workload)
    if find_spec("yaml") is None:
        raise UsageError(f"{path}: YAML needs PyYAML: pip install 'efserve[yaml]', or give the same as JSON")
    return msgspec.yaml.decode(data, type=Workload)


def split(application: Application, capacities: Sequence[Capacity]) -> list[Demand]:
    """One demand per step; along every path the SLOs add up to at most the application's.

    A step gets of the SLO what its fastest latency is of the slowest path through it.
    """
    try:
        order = list(TopologicalSorter(application.steps).static_order())
    except CycleError as exc:
        raise UsageError(f"application {application.name!r}: its steps wait for one another: {exc.args[1]}") from exc
    fastest = {model: _fastest_ms(model, capacities) for model in order}
    before: dict[str, float] = {}
    for model in order:
        before[model] = fastest[model] + max((before[b] for b in application.steps.get(model, ())), default=0.0)
    after: dict[str, float] = {}
    for model in reversed(order):
        followers = [after[f] for f, waits in application.steps.items() if model in waits]
        after[model] = fastest[model] + max(followers, default=0.0)
    slowest = {model: before[model] + after[model] - fastest[model] for model in order}  # of the paths through it
    return [Demand(model, application.rate, application.slo_ms * fastest[model] / slowest[model]) for model in order]


def _fastest_ms(model: str, capacities: Sequence[Capacity]) -> float:
    latencies = [p.latency_ms for c in capacities if c.model == model for p in c.points if p.throughput_per_s > 0]
    if not latencies:
        raise UsageError(f"{model}: there is no profile of it on this device, so an application cannot be split")
    return min(latencies)


def merged(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    """One demand per model: rates add up, the shortest SLO counts. Raises UsageError where a number is none."""
    whole: dict[str, Demand] = {}
    for demand in demands:
        if not (demand.rate_per_s > 0 and demand.slo_ms > 0) or demand.rate_per_s + demand.slo_ms == float("inf"):
            raise UsageError(f"{demand.model}: rate {demand.rate_per_s:g}, SLO {demand.slo_ms:g}: both must be above 0")
        old = whole.get(demand.model)
        rate = demand.rate_per_s + (old.rate_per_s if old else 0.0)
        slo_ms = min(demand.slo_ms, old.slo_ms) if old else demand.slo_ms
        whole[demand.model] = Demand(demand.model, rate, slo_ms)
    return tuple(whole.values())
