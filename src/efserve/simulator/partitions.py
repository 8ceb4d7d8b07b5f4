"""What stands for processes in a simulation: how long their batches take, and what partitions count.

Which batch runs where and when is the server's own router's business.
"""

from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from efserve.errors import UsageError
from efserve.planning.plan import Capacity, Placement, Point, Tenant

LEAST_OF_MEAN = 0.5  # a drawn latency is never shorter than so much of its mean
STEPS = 512  # equally likely latencies of a batch
TAIL = 0.01  # of the batches are above the 99th percentile

Milliseconds = npt.NDArray[np.float64]  # [STEPS], ascending


class Latency:
    """Draws how long a batch of some rows takes for one tenant, from the rows of its profile.

    `draws` are whole numbers below STEPS, all equally likely, which are used over and over.
    """

    def __init__(self, tenant: Tenant, share_pct: float, capacities: Sequence[Capacity], draws: list[int]) -> None:
        points = sorted(
            (
                point
                for capacity in capacities
                if (capacity.model, capacity.engine) == (tenant.model, tenant.engine)
                for point in capacity.points
                if abs(point.share_pct - share_pct) < 0.05 and point.processes == tenant.processes
            ),
            key=lambda point: point.batch,
        )
        if not any(point.batch >= tenant.batch for point in points):
            raise UsageError(
                f"no profile of {tenant.model} with {tenant.engine} has batch {tenant.batch} on {share_pct:g} %: "
                "simulate with the profiles that the plan was made from"
            )
        self._batches = [point.batch for point in points]
        self._spreads = [spread(point) for point in points]
        self._tables: list[list[int]] = [[] for _ in range(tenant.batch + 1)]
        self._draws = draws
        self._drawn = 0

    def draw_ns(self, rows: int) -> int:
        """The duration of a batch."""
        self._drawn = (self._drawn + 1) % len(self._draws)
        table = self._tables[rows] or self._fill(rows)
        return table[self._draws[self._drawn]]

    def _fill(self, rows: int) -> list[int]:
        """The latencies of so many rows, between those of the batches that were measured."""
        above = int(np.searchsorted(self._batches, rows))
        if above == 0 or self._batches[above] == rows:
            between = self._spreads[above]
        else:
            low, high = self._batches[above - 1 : above + 1]
            part = (rows - low) / (high - low)
            between = (1 - part) * self._spreads[above - 1] + part * self._spreads[above]
        self._tables[rows] = (between * 1e6).astype(np.int64).tolist()
        return self._tables[rows]


def spread(point: Point) -> Milliseconds:
    """Equally likely latencies of a batch, with the measured mean.

    Straight lines through the percentiles, the last of them as long as the mean wants; a normal distribution where no
    percentiles are known.
    """
    mean_ms = point.mean_ms or point.latency_ms
    if not (point.mean_ms and point.p50_ms and point.p90_ms):
        return np.maximum(mean_ms * LEAST_OF_MEAN, mean_ms + point.std_ms * _normal())
    least_ms = max(point.p50_ms * LEAST_OF_MEAN, 2 * point.p50_ms - point.p90_ms)
    knots_ms = [least_ms, point.p50_ms, point.p90_ms, point.latency_ms, point.latency_ms]
    found_ms = np.interp(_middles(), (0.0, 0.5, 0.9, 1 - TAIL, 1.0), knots_ms)
    missing_ms = mean_ms - float(found_ms.mean())
    if missing_ms <= 0:
        return found_ms * (mean_ms / float(found_ms.mean()))
    late = _middles() > 1 - TAIL
    found_ms[late] += missing_ms * STEPS / int(late.sum())
    return found_ms


@cache
def _middles() -> Milliseconds:
    return (np.arange(STEPS) + 0.5) / STEPS


@cache
def _normal() -> Milliseconds:
    return np.array([NormalDist().inv_cdf(each) for each in _middles().tolist()])


class Place:
    """What one partition counts."""

    __slots__ = ("batches", "busy_ns", "placement", "processes", "rows")

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.processes = placement.tenants[0].processes if len(placement.tenants) == 1 else 1
        self.busy_ns = 0
        self.batches = 0
        self.rows = 0

    def ran(self, rows: int) -> None:
        """Counts a batch that begins; `busy_ns` grows when it has ended."""
        self.batches += 1
        self.rows += rows
