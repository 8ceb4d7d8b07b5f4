"""The simulation itself: a heap of batch ends beside a list of arrivals, and what the requests met.

Routers, turns and terms are those of the server; latencies are drawn from the profiles. Everything random comes from
one seed.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from efserve.inference import InferRequest, Outcome
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.planned import PlannedWorker, planned_config, planned_router, planned_workers
from efserve.planning.interference import Interference
from efserve.planning.plan import Capacity, Plan
from efserve.routing import Action, Router, Send, pass_on
from efserve.simulator.neighbours import Neighbours, costs
from efserve.simulator.partitions import STEPS, Latency, Place

ENOUGH = 0.99  # of the requests within their SLO: a plan holds a rate
DRAWS = 4096  # random numbers, used over and over


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """What the requests of one model met."""

    model: str
    requests: int
    within_slo: int
    dropped: int  # answered 503, for they could not keep the SLO any more
    goodput_per_s: float
    p50_ms: float  # of those that were not dropped, as the two below
    p99_ms: float
    max_ms: float
    max_queued: int


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
    def worst_within_slo(self) -> float:
        """That part for the model that fares worst."""
        return min((model.within_slo / model.requests for model in self.models if model.requests), default=1.0)

    @property
    def holds(self) -> bool:
        """Whether each model kept its SLO for 99 % of its requests."""
        return all(model.within_slo >= ENOUGH * model.requests for model in self.models)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When requests come, and to which of the plan's models, both in order of time."""

    time_ns: list[int]
    model: list[int]


def simulate(
    plan: Plan,
    capacities: Sequence[Capacity],
    arrival: Arrival,
    seed: int = 0,
    late: str = "drop",
    gateway_ms: float = 0.0,
    interference: Interference | None = None,
) -> Outcomes:
    """Runs the requests through the plan until all are answered; `late`: "drop" or "serve", as the server has it.

    `gateway_ms` is what each request takes besides, between its client and the router. With `interference`, a batch
    takes longer for as long as neighbours on its device run.
    """
    fleet = _Fleet(plan, capacities, seed, late, interference)
    end_ns = fleet.run(arrival)
    duration_s = max(end_ns / 1e9, 1e-9)
    return Outcomes(
        plan.policy,
        duration_s,
        tuple(_model_outcomes(plan, fleet, duration_s, gateway_ms)),
        tuple(_partition_outcome(place, duration_s) for place in fleet.places),
    )


class _Fleet:
    """The routers of a plan's models and all their workers, by number, on a clock of events."""

    def __init__(
        self, plan: Plan, capacities: Sequence[Capacity], seed: int, late: str, interference: Interference | None
    ) -> None:
        draws: list[int] = np.random.default_rng(seed).integers(0, STEPS, DRAWS).tolist()
        self.places = [Place(placement) for placement in plan.placements]
        self.latencies_ns: list[list[int]] = [[] for _ in plan.demands]
        self.dropped = [0] * len(plan.demands)
        self.most_queued = [0] * len(plan.demands)
        self._routers: list[Router] = []
        self._workers: list[tuple[int, PlannedWorker, Place, Latency]] = []  # model; then by the worker's number
        self._heap: list[tuple[int, int, int]] = []  # end of a batch, worker, slot
        planned = planned_workers(plan)
        for model, demand in enumerate(plan.demands):
            mine = planned[demand.model]
            rows = max(worker.terms.rows for worker in mine)
            config = ModelConfig(demand.model, max_batch_size=rows, dynamic_batching=DynamicBatching())
            router = planned_router(planned_config(config, rows), demand.slo_ms, late)
            self._routers.append(router)
            for worker in mine:
                place = self.places[worker.placement]
                latency = Latency(worker.facts, place.placement.share_pct, capacities, draws)
                router.worker_ready(len(self._workers), 1, 0, worker.terms)
                self._workers.append((model, worker, place, latency))
        found = costs(plan, [worker for _, worker, _, _ in self._workers], interference)
        self._neighbours = Neighbours(found) if any(found) else None
        self._began_ns = [0] * len(self._workers)
        self._model_of = {router: model for model, router in enumerate(self._routers)}

    def run(self, arrival: Arrival) -> int:
        """Lets all requests come; when the last batch has ended."""
        now_ns = 0
        for time_ns, model in zip(arrival.time_ns, arrival.model, strict=True):
            now_ns = self._finish(time_ns, now_ns)
            router = self._routers[model]
            actions = router.add(InferRequest((), (), 1, None, _nobody, arrival_ns=time_ns))
            if actions:
                self._carry_out(model, actions, time_ns)
            self.most_queued[model] = max(self.most_queued[model], router.pending)
        return self._finish(2**63, now_ns)

    def _finish(self, until_ns: int, now_ns: int) -> int:
        """Ends the batches that end until then; when the last of them did."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            end_ns, number, slot = heapq.heappop(heap)
            if self._neighbours is not None and not self._has_ended(number, slot, end_ns):
                continue
            now_ns = end_ns
            model, worker, place, _ = self._workers[number]
            place.busy_ns += now_ns - self._began_ns[number]
            batch, actions = self._routers[model].batch_done(number, slot, now_ns)
            taken = self.latencies_ns[model]
            for request in batch:
                taken.append(now_ns - request.arrival_ns)
            if actions:
                self._carry_out(model, actions, now_ns)
            if worker.terms.turns is not None:
                for router, more in pass_on(worker.terms.turns, now_ns):
                    self._carry_out(self._model_of[router], more, now_ns)
        return now_ns

    def _carry_out(self, model: int, actions: Iterable[Action], now_ns: int) -> None:
        for action in actions:
            if isinstance(action, Send):
                _, _, place, latency = self._workers[action.worker]
                rows = len(action.batch)
                took_ns = latency.draw_ns(rows)
                place.ran(rows)
                self._began_ns[action.worker] = now_ns
                if self._neighbours is None:
                    heapq.heappush(self._heap, (now_ns + took_ns, action.worker, action.slot))
                else:
                    self._expect(self._neighbours.begin(action.worker, took_ns, now_ns), action.slot)
            else:
                self.dropped[model] += 1

    def _has_ended(self, number: int, slot: int, end_ns: int) -> bool:
        """Whether the worker's batch ends now: neighbours that came or went since this was expected have moved it."""
        assert self._neighbours is not None
        if self._neighbours.ends_ns[number] != end_ns:
            return False
        self._expect(self._neighbours.end(number, end_ns), slot)
        return True

    def _expect(self, workers: Iterable[int], slot: int) -> None:
        """The batches of these workers, which have one slot each, end at other times than was expected."""
        assert self._neighbours is not None
        for number in workers:
            heapq.heappush(self._heap, (self._neighbours.ends_ns[number], number, slot))


def _nobody(outcome: Outcome) -> None:
    """A simulated request has no client."""


def _model_outcomes(plan: Plan, fleet: _Fleet, duration_s: float, gateway_ms: float) -> Iterable[ModelOutcome]:
    for at, demand in enumerate(plan.demands):
        taken, dropped = fleet.latencies_ns[at], fleet.dropped[at]
        latency_ms = np.array(taken, dtype=np.float64) / 1e6 + gateway_ms
        within = int((latency_ms <= demand.slo_ms).sum())
        p50, p99, most = np.percentile(latency_ms, (50, 99, 100)).tolist() if taken else (0.0, 0.0, 0.0)
        yield ModelOutcome(
            demand.model,
            len(taken) + dropped,
            within,
            dropped,
            within / duration_s,
            p50,
            p99,
            most,
            fleet.most_queued[at],
        )


def _partition_outcome(place: Place, duration_s: float) -> PartitionOutcome:
    return PartitionOutcome(
        place.placement.device,
        place.placement.share_pct,
        tuple(tenant.model for tenant in place.placement.tenants),
        place.busy_ns / 1e9 / duration_s / place.processes,
        place.batches,
        place.rows / place.batches if place.batches else 0.0,
    )
