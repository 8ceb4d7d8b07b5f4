"""What stands for processes in a simulation: how long their batches take, and what partitions count.

Which batch runs where and when is the server's own router's business.
"""

from collections.abc import Sequence

import numpy as np

from efserve.errors import UsageError
from efserve.planning.plan import Capacity, Placement, Tenant

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
    """What one partition counts."""

    __slots__ = ("batches", "busy_ns", "placement", "processes", "rows")

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.processes = placement.tenants[0].processes if len(placement.tenants) == 1 else 1
        self.busy_ns = 0
        self.batches = 0
        self.rows = 0

    def ran(self, rows: int, took_ns: int) -> None:
        """Counts a batch that begins."""
        self.batches += 1
        self.rows += rows
        self.busy_ns += took_ns
