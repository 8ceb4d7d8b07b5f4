"""`efserve plan` as one call: options to a plan that the checker has passed, or to a verdict on a plan's file."""

from dataclasses import dataclass

from efserve import files
from efserve.errors import ServerError, UsageError
from efserve.planning.check import check
from efserve.planning.here import Kind, kinds_here
from efserve.planning.interference import Interference, find_interference, slowed
from efserve.planning.options import PlanConfig
from efserve.planning.plan import (
    Capacity,
    Demand,
    Device,
    Plan,
    Problem,
    engine_and_precision,
    plan_json,
    read_plan,
)
from efserve.planning.policies import make_plan
from efserve.planning.tables import kinds, read_capacities
from efserve.planning.workload import merged, read_workload


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan and what the checker says about it."""

    plan: Plan
    wrong: tuple[str, ...]
    interference: Interference | None = None


def run(config: PlanConfig) -> PlanResult:
    """Makes a plan, or checks one. Raises NoPlan where the demands cannot be met, UsageError where none are given."""
    if config.check:
        plan = read_plan(config.check)
        kind = plan.devices[0].kind if plan.devices else ""
        interference = find_interference(config.profiles, kind, config.interference, forbidden=config.no_interference)
        wrong = check(plan, read_capacities(config.profiles, kind), interference)
        return PlanResult(plan, tuple(wrong), interference)
    return _planned(config)


def _planned(config: PlanConfig) -> PlanResult:
    devices = _devices(config)
    kind = devices[0].kind
    allowed = ("", *config.precision)
    capacities = tuple(
        capacity
        for capacity in read_capacities(config.profiles, kind)
        if engine_and_precision(capacity.engine)[1] in allowed
    )
    interference = find_interference(config.profiles, kind, config.interference, forbidden=config.no_interference)
    problem = Problem(
        demands=_demands(config, capacities),
        capacities=slowed(capacities, interference) if interference else capacities,
        devices=devices,
        max_partitions=config.max_partitions,
        headroom_pct=config.headroom_pct,
        objective=config.objective,
        budget_s=config.budget_s,
        arrivals=config.arrivals,
    )
    plan = make_plan(problem, config.policy)
    wrong = check(plan, capacities, interference)
    if wrong:  # a fault of the policy: its plan is neither shown nor written
        raise ServerError(f"the plan of policy {config.policy} does not hold: {'; '.join(wrong)}")
    if config.output:
        files.write(config.output, plan_json(plan))
    return PlanResult(plan, (), interference)


def _demands(config: PlanConfig, capacities: tuple[Capacity, ...]) -> tuple[Demand, ...]:
    rates, slos = dict(config.rate), dict(config.slo)
    if unpaired := sorted(rates.keys() ^ slos.keys()):
        given = ", ".join(unpaired)
        raise UsageError(f"{given}: give both --rate MODEL=REQUESTS_PER_S and --slo MODEL=MS for each model")
    demands = [Demand(model, rate, slos[model]) for model, rate in rates.items()]
    if config.workload:
        demands += read_workload(config.workload, capacities)
    if not demands:
        models = ", ".join(sorted({capacity.model for capacity in capacities}))
        raise UsageError(f"nothing to plan: give --rate and --slo, or --workload; profiled models: {models}")
    return merged(demands)


def _devices(config: PlanConfig) -> tuple[Device, ...]:
    """Those asked for; else this machine's, of the first kind that has profiles; else one of the only kind that has.

    Memory that is not given is that of this machine's devices of the kind.
    """
    count, name = config.devices
    here = {kind.name: kind for kind in kinds_here()}
    if not name:
        known = kinds(config.profiles)
        name = next((kind for kind in here if kind in known), "")
        if not name and len(known) != 1:
            there = ", ".join(known) or f"none in {config.profiles}; `efserve profile --grid` makes them"
            raise UsageError(
                f"no profiles of this machine's {' or '.join(here)}; give --devices COUNTxNAME, where profiles are "
                f"of: {there}"
            )
        name = name or known[0]
    kind = here.get(name, Kind(name, 1, 0.0))
    memory_mb = config.memory_mb or kind.memory_mb
    return tuple(Device(f"{name}-{at}", name, memory_mb) for at in range(count or kind.count))
