"""`efserve simulate` as one call: plans and arrivals to outcomes, or to the highest load that each plan holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from efserve.arrivals import Seconds, Trace, intended, parse_trace, steady
from efserve.errors import UsageError
from efserve.planning.interference import Interference, find_interference, slowed
from efserve.planning.plan import Capacity, NoPlan, Plan, Problem, read_plan
from efserve.planning.policies import POLICIES, most_factor
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
    gateway_ms: float = 0.0
    interference: Path | None = None  # None: the pairs measured beside the profiles, where there are any
    no_interference: bool = False
    seed: int = 0
    sweep: bool = False
    policy: tuple[str, ...] = ()  # of a sweep: plan the same demands by these too
    budget_s: float = 5.0
    plot: Path | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Try:
    """One load of a sweep: requests/s of all models, and the part within the SLO of the model that fares worst."""

    rate_per_s: float
    within_slo: float


@dataclass(frozen=True, slots=True)
class Limit:
    """The highest load at which a plan holds, as a factor on its planned rates."""

    plan: str  # its file; empty: planned here
    policy: str
    factor: float
    rate_per_s: float
    tried: tuple[Try, ...] = ()  # in order of the rates


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
    return sweep(plan, capacities, config)[0]


def sweep(
    plan: Plan, capacities: Sequence[Capacity], config: SimulateConfig, interference: Interference | None = None
) -> tuple[float, tuple[Try, ...]]:
    """That factor, and every load that was tried to find it."""
    total_per_s = sum(demand.rate_per_s for demand in plan.demands)
    tried: list[Try] = []

    def holds(factor: float) -> bool:
        arrival = planned_arrivals(plan, config, factor)
        outcome = simulate(plan, capacities, arrival, config.seed, config.late, config.gateway_ms, interference)
        tried.append(Try(total_per_s * factor, outcome.worst_within_slo))
        return outcome.holds

    low, high = 0.0, 1.0
    while high < 1e6 and holds(high):
        low, high = high, high * 1.5
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, tuple(sorted(tried, key=lambda each: each.rate_per_s))


def planned_by(policy: str, plan: Plan, capacities: tuple[Capacity, ...], budget_s: float) -> Plan | None:
    """The policy's plan of the same demands on the same devices, for as much as they carry; None where it has none."""
    problem = Problem(
        plan.demands,
        capacities,
        plan.devices,
        plan.max_partitions,
        objective="goodput",
        budget_s=budget_s,
        arrivals="poisson",
    )
    factor = most_factor(problem, policy)
    demands = tuple(replace(demand, rate_per_s=demand.rate_per_s * factor) for demand in plan.demands)
    try:
        return replace(POLICIES[policy](replace(problem, demands=demands)), demands=plan.demands) if factor else None
    except NoPlan:  # which can be where the search was cut short by its budget
        return None


def run(config: SimulateConfig) -> list[Outcomes] | list[Limit]:
    """One run per plan; with `sweep` the highest load of each."""
    trace = parse_trace(_text(config.trace), str(config.trace)) if config.trace else None
    outcomes: list[Outcomes] = []
    limits: list[Limit] = []
    for path in config.plans:
        plan = read_plan(path)
        if not plan.placements:
            raise UsageError(f"{path} places nothing: there is nothing to simulate")
        kind = plan.devices[0].kind
        capacities = read_capacities(config.profiles, kind)
        known = find_interference(config.profiles, kind, config.interference, forbidden=config.no_interference)
        if config.sweep:
            planned_with = slowed(capacities, known) if known else capacities
            rivals = [planned_by(policy, plan, planned_with, config.budget_s) for policy in config.policy]
            limits.append(_limit(str(path), plan, capacities, config, known))
            limits += [_limit("", rival, capacities, config, known) for rival in rivals if rival is not None]
        else:
            arrival = (
                traced_arrivals(plan, trace, config.factor) if trace else planned_arrivals(plan, config, config.factor)
            )
            outcomes.append(simulate(plan, capacities, arrival, config.seed, config.late, config.gateway_ms, known))
    return limits or outcomes


def _limit(
    name: str, plan: Plan, capacities: Sequence[Capacity], config: SimulateConfig, known: Interference | None
) -> Limit:
    factor, tried = sweep(plan, capacities, config, known)
    return Limit(name, plan.policy, factor, sum(demand.rate_per_s for demand in plan.demands) * factor, tried)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read trace {path}: {exc}") from exc
