"""One simulated partition: the server's router or batch queues, and how long their batches take.

Owns no clock: `add` and `done` are told the time and answer with the batches that begin.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from efserve.batching import BatchQueue
from efserve.errors import Unavailable, UsageError
from efserve.inference import InferRequest
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.planning.plan import Capacity, Placement, Tenant
from efserve.routing import Action, Router, Send

LEAST_OF_MEAN = 0.5  # a drawn latency is never shorter than so much of its mean


class Latency:
    """Draws how long a batch of some rows takes for one tenant, from the rows of its profile."""

    def __init__(self, tenant: Tenant, share_pct: float, capacities: Sequence[Capacity], draws: list[float]) -> None:
        points = sorted(
            (point.batch, point.mean_ms or point.latency_ms, point.std_ms)
            for capacity in capacities
            if (capacity.model, capacity.engine) == (tenant.model, tenant.engine)
            for point in capacity.points
            if abs(point.share_pct - share_pct) < 0.05 and point.processes == tenant.processes
        )
        if not any(batch >= tenant.batch for batch, _, _ in points):
            raise UsageError(
                f"no profile of {tenant.model} with {tenant.engine} has batch {tenant.batch} on {share_pct:g} %: "
                "simulate with the profiles that the plan was made from"
            )
        rows = np.arange(tenant.batch + 1)
        batches = [batch for batch, _, _ in points]
        self._mean_ns: list[float] = (np.interp(rows, batches, [mean for _, mean, _ in points]) * 1e6).tolist()
        self._std_ns: list[float] = (np.interp(rows, batches, [std for _, _, std in points]) * 1e6).tolist()
        self._draws = draws
        self._drawn = 0

    def draw_ns(self, rows: int) -> int:
        """The duration of a batch."""
        self._drawn = (self._drawn + 1) % len(self._draws)
        mean = self._mean_ns[rows]
        return int(max(mean * LEAST_OF_MEAN, mean + self._std_ns[rows] * self._draws[self._drawn]))


class Place:
    """What both kinds of partition count."""

    __slots__ = ("batches", "busy_ns", "most", "outstanding", "placement", "rows")

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.outstanding = [0] * len(placement.tenants)
        self.most = [0] * len(placement.tenants)
        self.busy_ns = 0
        self.batches = 0
        self.rows = 0

    def arrived(self, tenant: int) -> None:
        """Counts a request in."""
        self.outstanding[tenant] += 1
        self.most[tenant] = max(self.most[tenant], self.outstanding[tenant])

    def ran(self, rows: int, took_ns: int) -> None:
        """Counts a batch that begins."""
        self.batches += 1
        self.rows += rows
        self.busy_ns += took_ns


Start = tuple[int, int, int]  # duration, and what `done` is to be told: tenant or worker, slot


class Alone:
    """A partition of one model: the server's router, with a worker per process."""

    def __init__(self, place: Place, latency: Latency) -> None:
        (tenant,) = place.placement.tenants
        self.place = place
        self._latency = latency
        self._router = Router(_config(tenant))
        for worker in range(tenant.processes):
            self._router.worker_ready(worker, 1, 0)

    def add(self, request: InferRequest, tenant: int) -> list[Start]:
        """A request has come; the batches that begin."""
        self.place.arrived(tenant)
        actions = self._router.add(request)
        return self._begin(actions) if actions else []

    def done(self, worker: int, slot: int, now_ns: int) -> tuple[list[InferRequest], list[Start]]:
        """A batch has ended: its requests, and the batches that begin."""
        batch, actions = self._router.batch_done(worker, slot, now_ns)
        self.place.outstanding[0] -= len(batch)
        return batch, self._begin(actions)

    def _begin(self, actions: Iterable[Action]) -> list[Start]:
        starts = []
        for action in actions:
            if isinstance(action, Send):
                took_ns = self._latency.draw_ns(len(action.batch))
                self.place.ran(len(action.batch), took_ns)
                starts.append((took_ns, action.worker, action.slot))
            else:  # its bounded queue is full: an answer that is no goodput
                self.place.outstanding[0] -= 1
                action.request.done(action.error)
        return starts


class Turns:
    """A partition of several models: one batch at a time, the models in turn, one that has nothing to run passes."""

    def __init__(self, place: Place, latencies: Sequence[Latency]) -> None:
        self.place = place
        self._latencies = latencies
        self._queues = [BatchQueue(t.batch, DynamicBatching()) for t in place.placement.tenants]
        self._running: list[InferRequest] = []
        self._last = 0

    def add(self, request: InferRequest, tenant: int) -> list[Start]:
        """A request has come; the batch that begins."""
        self.place.arrived(tenant)
        if not self._queues[tenant].add(request):
            self.place.outstanding[tenant] -= 1
            request.done(Unavailable("Exceeds maximum queue size"))
        return [] if self._running else self._begin(request.arrival_ns)

    def done(self, tenant: int, slot: int, now_ns: int) -> tuple[list[InferRequest], list[Start]]:
        """The batch has ended: its requests, and the batch that begins."""
        batch, self._running = self._running, []
        self.place.outstanding[tenant] -= len(batch)
        return batch, self._begin(now_ns)

    def _begin(self, now_ns: int) -> list[Start]:
        count = len(self._queues)
        for step in range(1, count + 1):
            tenant = (self._last + step) % count
            if self._queues[tenant] and (batch := self._queues[tenant].take(now_ns)):
                self._last, self._running = tenant, batch
                took_ns = self._latencies[tenant].draw_ns(len(batch))
                self.place.ran(len(batch), took_ns)
                return [(took_ns, tenant, 0)]
        return []


def _config(tenant: Tenant) -> ModelConfig:
    return ModelConfig(tenant.model, max_batch_size=tenant.batch, dynamic_batching=DynamicBatching())
