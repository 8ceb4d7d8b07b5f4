"""`efserve simulate` as one call: plans and arrivals to outcomes, or to the highest load that each plan holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efserve.arrivals import Seconds, Trace, intended, parse_trace, steady
from efserve.errors import UsageError
from efserve.planning.plan import Capacity, Plan, read_plan
from efserve.planning.tables import read_capacities
from efserve.simulator.events import Arrival, Outcomes, simulate


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """What `efserve simulate` was asked for; its fields are the options of the command, and told there."""

    plans: tuple[Path, ...]
    profiles: Path = Path("profiled_data")
    requests: int = 100_000
    arrivals: str = "poisson"
    cv: float = 2.0
    trace: Path | None = None
    factor: float = 1.0
    late: str = "drop"
    seed: int = 0
    sweep: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """The highest load at which a plan holds, as a factor on its planned rates."""

    plan: str
    policy: str
    factor: float
    rate_per_s: float


def planned_arrivals(plan: Plan, config: SimulateConfig, factor: float) -> Arrival:
    """Requests at the planned rates times `factor`, `config.requests` of them for all models together."""
    duration_s = config.requests / (sum(demand.rate_per_s for demand in plan.demands) * factor)
    times = [
        intended(steady(demand.rate_per_s * factor, duration_s), config.arrivals, config.seed + at, config.cv)
        for at, demand in enumerate(plan.demands)
    ]
    return _merged(times)


def _merged(times: Sequence[Seconds]) -> Arrival:
    whole = np.concatenate(times)
    models = np.concatenate([np.full(len(part), at) for at, part in enumerate(times)])
    order = np.argsort(whole, kind="stable")
    return Arrival((whole[order] * 1e9).astype(np.int64).tolist(), models[order].tolist())


def traced_arrivals(plan: Plan, trace: Trace, factor: float) -> Arrival:
    """The requests of a trace, `factor` times as fast. Raises UsageError where it names a model that is not planned."""
    known = {demand.model: at for at, demand in enumerate(plan.demands)}
    if len(known) == 1:
        known[""] = 0
    if unknown := sorted(set(trace.models) - known.keys()):
        raise UsageError(f"the trace names {unknown[0]!r}, which the plan does not; planned: {', '.join(known)}")
    return Arrival((trace.time_s / factor * 1e9).astype(np.int64).tolist(), [known[model] for model in trace.models])


def highest_factor(plan: Plan, capacities: Sequence[Capacity], config: SimulateConfig) -> float:
    """The highest factor on the planned rates at which each model keeps its SLO for 99 % of its requests, to 1 %."""

    def holds(factor: float) -> bool:
        return simulate(plan, capacities, planned_arrivals(plan, config, factor), config.seed, config.late).holds

    low, high = 0.0, 1.0
    while high < 1e6 and holds(high):
        low, high = high, high * 1.5
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def run(config: SimulateConfig) -> list[Outcomes] | list[Limit]:
    """One run per plan; with `sweep` the highest load of each."""
    trace = parse_trace(_text(config.trace), str(config.trace)) if config.trace else None
    outcomes: list[Outcomes] = []
    limits: list[Limit] = []
    for path in config.plans:
        plan = read_plan(path)
        if not plan.placements:
            raise UsageError(f"{path} places nothing: there is nothing to simulate")
        capacities = read_capacities(config.profiles, plan.devices[0].kind)
        if config.sweep:
            factor = highest_factor(plan, capacities, config)
            rate = sum(demand.rate_per_s for demand in plan.demands) * factor
            limits.append(Limit(str(path), plan.policy, factor, rate))
        else:
            arrival = (
                traced_arrivals(plan, trace, config.factor) if trace else planned_arrivals(plan, config, config.factor)
            )
            outcomes.append(simulate(plan, capacities, arrival, config.seed, config.late))
    return limits or outcomes


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read trace {path}: {exc}") from exc
