"""The simulation itself: a heap of batch ends beside a list of arrivals, and what the requests met.

Latencies are drawn from the profiles. A request goes to the partition of its model that needs least time for what it
has. Everything random comes from one seed.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from efserve.inference import InferRequest, Outcome
from efserve.planning.plan import Capacity, Plan
from efserve.simulator.partitions import Alone, Latency, Place, Turns

ENOUGH = 0.99  # of the requests within their SLO: a plan holds a rate
DRAWS = 4096  # standard normal numbers, used over and over

Site = Alone | Turns
Route = tuple[Site, int, int, float]  # a partition, its number, the tenant there, seconds per request


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """What the requests of one model met."""

    model: str
    requests: int
    within_slo: int
    goodput_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    max_queued: int  # on one partition


@dataclass(frozen=True, slots=True)
class PartitionOutcome:
    """How busy one partition was."""

    device: str
    share_pct: float
    models: tuple[str, ...]
    utilization: float
    batches: int
    mean_batch: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One simulated run."""

    policy: str
    duration_s: float
    models: tuple[ModelOutcome, ...]
    partitions: tuple[PartitionOutcome, ...]

    @property
    def within_slo(self) -> float:
        """The part of all requests that kept their SLO."""
        requests = sum(model.requests for model in self.models)
        return sum(model.within_slo for model in self.models) / requests if requests else 1.0

    @property
    def holds(self) -> bool:
        """Whether each model kept its SLO for 99 % of its requests."""
        return all(model.within_slo >= ENOUGH * model.requests for model in self.models)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When requests come, and to which of the plan's models, both in order of time."""

    time_ns: list[int]
    model: list[int]


def simulate(plan: Plan, capacities: Sequence[Capacity], arrival: Arrival, seed: int = 0) -> Outcomes:
    """Runs the requests through the plan until all are answered."""
    draws: list[float] = np.random.default_rng(seed).standard_normal(DRAWS).tolist()
    sites: list[Site] = []
    routes: dict[str, list[Route]] = {}
    for placement in plan.placements:
        place = Place(placement)
        latencies = [Latency(tenant, placement.share_pct, capacities, draws) for tenant in placement.tenants]
        site = Alone(place, latencies[0]) if len(latencies) == 1 else Turns(place, latencies)
        for at, tenant in enumerate(placement.tenants):
            routes.setdefault(tenant.model, []).append((site, len(sites), at, 1 / tenant.capacity_per_s))
        sites.append(site)
    latencies_ns, end_ns = _events(sites, [routes[demand.model] for demand in plan.demands], arrival)
    duration_s = max(end_ns / 1e9, 1e-9)
    return Outcomes(
        plan.policy,
        duration_s,
        tuple(_model_outcomes(plan, sites, latencies_ns, duration_s)),
        tuple(_partition_outcome(site.place, duration_s) for site in sites),
    )


def _events(
    sites: Sequence[Site],
    routes: Sequence[Sequence[Route]],
    arrival: Arrival,
) -> tuple[list[list[int]], int]:
    """Latencies of the answered requests of each model, and the end of the last batch."""
    latencies_ns: list[list[int]] = [[] for _ in routes]
    heap: list[tuple[int, int, int, int]] = []  # end of a batch, site, worker or tenant, slot
    push, pop = heapq.heappush, heapq.heappop
    now_ns = 0

    def finish(until_ns: int) -> None:
        nonlocal now_ns
        while heap and heap[0][0] <= until_ns:
            now_ns, number, which, slot = pop(heap)
            batch, starts = sites[number].done(which, slot, now_ns)
            for request in batch:
                latencies_ns[request.timeout_us].append(now_ns - request.arrival_ns)
            for took_ns, *what in starts:
                push(heap, (now_ns + took_ns, number, what[0], what[1]))

    for time_ns, model in zip(arrival.time_ns, arrival.model, strict=True):
        finish(time_ns)
        site, number, tenant, _ = min(routes[model], key=_waiting) if len(routes[model]) > 1 else routes[model][0]
        # `timeout_us` is read by no queue here, whose policies set none: it tells the request's model.
        request = InferRequest((), (), 1, None, _nobody, timeout_us=model, arrival_ns=time_ns)
        for took_ns, which, slot in site.add(request, tenant):
            push(heap, (time_ns + took_ns, number, which, slot))
    finish(2**63)
    return latencies_ns, now_ns


def _waiting(route: Route) -> float:
    """How long a partition would need for what it has and one request more."""
    site, _, tenant, per_request_s = route
    return (site.place.outstanding[tenant] + 1) * per_request_s


def _nobody(outcome: Outcome) -> None:
    """A simulated request has no client."""


def _model_outcomes(
    plan: Plan, sites: Sequence[Site], latencies_ns: Sequence[Sequence[int]], duration_s: float
) -> Iterable[ModelOutcome]:
    for demand, taken in zip(plan.demands, latencies_ns, strict=True):
        latency_ms = np.array(taken, dtype=np.float64) / 1e6
        within = int((latency_ms <= demand.slo_ms).sum())
        p50, p99, most = np.percentile(latency_ms, (50, 99, 100)).tolist() if taken else (0.0, 0.0, 0.0)
        queued = [
            most
            for site in sites
            for tenant, most in zip(site.place.placement.tenants, site.place.most, strict=True)
            if tenant.model == demand.model
        ]
        yield ModelOutcome(demand.model, len(taken), within, within / duration_s, p50, p99, most, max(queued))


def _partition_outcome(place: Place, duration_s: float) -> PartitionOutcome:
    processes = sum(tenant.processes for tenant in place.placement.tenants) if len(place.outstanding) == 1 else 1
    return PartitionOutcome(
        place.placement.device,
        place.placement.share_pct,
        tuple(tenant.model for tenant in place.placement.tenants),
        place.busy_ns / 1e9 / duration_s / processes,
        place.batches,
        place.rows / place.batches if place.batches else 0.0,
    )
