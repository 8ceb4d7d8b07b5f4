"""The checker: whether a plan holds, by the rules of docs/scheduling.md. Shares no code with the policies.

It believes none of the plan's own figures: latency, throughput and memory come from the profiles.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from efserve.planning.interference import Interference
from efserve.planning.plan import MEMORY_LIMIT_PCT, Capacity, Demand, Placement, Plan, Point, Tenant

SLACK = 1e-6  # of rounding, relative
SHARE_SLACK_PCT = 0.05  # shares such as 100/7 do not add up to 100 exactly


def check(plan: Plan, capacities: Sequence[Capacity], interference: Interference | None = None) -> list[str]:
    """Every rule that the plan breaks, one sentence each; empty: the plan holds."""
    return [
        *_partitions(plan),
        *_memory(plan, capacities),
        *_latency_and_capacity(plan, capacities, interference),
    ]


def _partitions(plan: Plan) -> list[str]:
    wrong = []
    names = {device.name for device in plan.devices}
    if len(names) != len(plan.devices):
        wrong.append("two devices have the same name")
    by_device: dict[str, list[Placement]] = defaultdict(list)
    for placement in plan.placements:
        by_device[placement.device].append(placement)
        if placement.device not in names:
            wrong.append(f"{placement.device} is none of the plan's devices")
        if not placement.tenants:
            wrong.append(f"{placement.device}: a partition of {placement.share_pct:g} % runs nothing")
        if not placement.share_pct > 0:
            wrong.append(f"{placement.device}: a share of {placement.share_pct:g} % is none")
    for name, placements in by_device.items():
        total_pct = sum(placement.share_pct for placement in placements)
        if total_pct > 100 + SHARE_SLACK_PCT:
            wrong.append(f"{name}: shares add up to {total_pct:.2f} %")
        if plan.max_partitions and len(placements) > plan.max_partitions:
            wrong.append(f"{name}: {len(placements)} partitions, at most {plan.max_partitions} are allowed")
    return wrong


def _memory(plan: Plan, capacities: Sequence[Capacity]) -> list[str]:
    wrong = []
    for device in plan.devices:
        needed_mb = 0.0
        for placement in plan.placements:
            if placement.device == device.name:
                points = [_point(capacities, placement, tenant) for tenant in placement.tenants]
                needed_mb += sum(point.memory_mb for point in points if point is not None)
        most_mb = device.memory_mb * MEMORY_LIMIT_PCT / 100
        if most_mb and needed_mb > most_mb * (1 + SLACK):
            wrong.append(f"{device.name}: {needed_mb:.0f} MB are needed, {most_mb:.0f} may be used")
    return wrong


def _latency_and_capacity(plan: Plan, capacities: Sequence[Capacity], interference: Interference | None) -> list[str]:
    wrong = []
    demands = {demand.model: demand for demand in plan.demands}
    carried: dict[str, float] = defaultdict(float)
    for placement in plan.placements:
        where = f"{placement.device}, {placement.share_pct:g} %"
        points = [_point(capacities, placement, tenant) for tenant in placement.tenants]
        if None in points:
            missing = [t.model for t, point in zip(placement.tenants, points, strict=True) if point is None]
            wrong.append(f"{where}: no profile row has this batch and share for {', '.join(missing)}")
            continue
        known = [
            _slowest(capacities, tenant, point)
            for tenant, point in zip(placement.tenants, points, strict=True)
            if point is not None
        ]
        slows = [_slowdown(plan, placement, tenant, interference) for tenant in placement.tenants]
        busy_ms = sum(point.latency_ms * slow for point, slow in zip(known, slows, strict=True))
        if len(known) > 1 and busy_ms > placement.cycle_ms * (1 + SLACK):
            wrong.append(f"{where}: the batches of one cycle take longer than its {placement.cycle_ms:g} ms")
        for tenant, point, slow in zip(placement.tenants, known, slows, strict=True):
            demand = demands.get(tenant.model)
            if demand is None:
                wrong.append(f"{where}: nobody asked for {tenant.model}")
                continue
            wrong += _tenant(plan, placement, tenant, point, demand, slow)
            carried[tenant.model] += tenant.rate_per_s
    for demand in plan.demands:
        if carried[demand.model] < demand.rate_per_s * (1 - SLACK):
            wrong.append(f"{demand.model}: {carried[demand.model]:.4g} req/s of {demand.rate_per_s:.4g} are placed")
    return wrong


def _tenant(plan: Plan, placement: Placement, tenant: Tenant, point: Point, demand: Demand, slow: float) -> list[str]:
    """The worst case and the capacity of one model on one partition."""
    wrong = []
    latency_ms = point.latency_ms * slow
    if len(placement.tenants) == 1:  # waits for a running batch, or for its own to gather; then its own runs
        cycle_ms = max(placement.cycle_ms, latency_ms)
        carries_per_s = point.throughput_per_s / slow * latency_ms / cycle_ms
    else:
        cycle_ms = placement.cycle_ms
        per_cycle = min(point.batch, point.throughput_per_s * point.latency_ms / 1000)
        carries_per_s = per_cycle / cycle_ms * 1000 if cycle_ms > 0 else 0.0
        if tenant.processes != 1:
            wrong.append(f"{tenant.model}: {tenant.processes} processes cannot take turns with other models")
    worst_ms = cycle_ms + latency_ms
    if worst_ms > demand.slo_ms * (1 + SLACK):
        wrong.append(
            f"{tenant.model} on {placement.device}: up to {worst_ms:.4g} ms with batch {tenant.batch} on "
            f"{placement.share_pct:g} %, its SLO is {demand.slo_ms:g} ms"
        )
    wanted_per_s = tenant.rate_per_s * (1 + plan.headroom_pct / 100)
    if wanted_per_s > carries_per_s * (1 + SLACK):
        wrong.append(
            f"{tenant.model} on {placement.device}: {wanted_per_s:.4g} req/s are planned on {placement.share_pct:g} %, "
            f"which carries {carries_per_s:.4g}"
        )
    return wrong


def _point(capacities: Sequence[Capacity], placement: Placement, tenant: Tenant) -> Point | None:
    for capacity in capacities:
        if (capacity.model, capacity.engine) == (tenant.model, tenant.engine):
            for point in capacity.points:
                if abs(point.share_pct - placement.share_pct) < SHARE_SLACK_PCT and (point.batch, point.processes) == (
                    tenant.batch,
                    tenant.processes,
                ):
                    return point
    return None


def _slowest(capacities: Sequence[Capacity], tenant: Tenant, planned: Point) -> Point:
    """The row as it counts: a worker takes what waits, be it less than the planned batch, and that may take longer."""
    fewer = [
        point
        for capacity in capacities
        if (capacity.model, capacity.engine) == (tenant.model, tenant.engine)
        for point in capacity.points
        if abs(point.share_pct - planned.share_pct) < SHARE_SLACK_PCT
        and point.processes == planned.processes
        and point.batch <= planned.batch
    ]
    longest_ms = max(point.latency_ms for point in fewer)
    mean_ms = max(point.mean_ms or point.latency_ms for point in fewer)
    carries_per_s = planned.throughput_per_s * (planned.mean_ms or planned.latency_ms) / mean_ms
    return replace(planned, latency_ms=longest_ms, throughput_per_s=carries_per_s)


def _slowdown(plan: Plan, placement: Placement, tenant: Tenant, interference: Interference | None) -> float:
    """How much slower a tenant is beside the other partitions of its device; of each the model that presses most."""
    if interference is None:
        return 1.0
    others = [p for p in plan.placements if p.device == placement.device and p is not placement]
    choices = product(*([(t.model, other.share_pct) for t in other.tenants] for other in others))
    return max(interference.slowdown(tenant.model, placement.share_pct, choice) for choice in choices)
