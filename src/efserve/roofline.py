"""The roofline model: what a device can do at most, and what part of it a model can use at each batch.

Formulas after Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", CACM 52(4), 2009; docs/roofline.md writes them out. Pure: measuring is `profiler/ceilings.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from efserve.graph_cost.count import GraphCost

FP32 = "FP32"
Bound = Literal["memory", "cache", "compute"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A limit of a device as it was measured: the best of several repetitions, in operations/s or bytes/s."""

    per_s: float
    median_per_s: float  # far below the best: repetitions differed
    cpu_pct: float  # of its cores' time that the measurement got; far below 100: others used them
    repetitions: int
    how: str  # what was run, in a few words


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The limits of a device, or of the part of it that was measured."""

    device: str  # its name
    part: str  # what of it was measured, such as "2 of 2 cores, 2 threads"
    library: str  # what ran, with its version
    peaks: dict[str, Ceiling]  # precision -> operations/s; there is always FP32
    memory: Ceiling
    cache: Ceiling | None  # bandwidth of what fits in the cache; None: not measured
    cache_bytes: int  # of the last level; 0: not known
    measured_at: str  # wall time, ISO 8601 with offset

    @property
    def peak(self) -> float:
        """Operations/s in FP32."""
        return self.peaks[FP32].per_s

    @property
    def ridge(self) -> float:
        """Operations per byte from which FP32 computing, not memory, is the limit."""
        return self.peak / self.memory.per_s

    def peak_of(self, precision: str) -> float:
        """Operations/s in a precision; those of FP32 where it has no ceiling of its own."""
        return self.peaks.get(precision, self.peaks[FP32]).per_s

    def is_cached(self, cost: GraphCost) -> bool:
        """True when weights and the largest step of a batch stay in the cache."""
        return self.cache is not None and cost.working_set_bytes <= self.cache_bytes

    def bandwidth_for(self, cost: GraphCost) -> float:
        """Bytes/s at which the batch's tensors come."""
        return self.cache.per_s if self.cache is not None and self.is_cached(cost) else self.memory.per_s

    def compute_s(self, cost: GraphCost) -> float:
        """Least time of a batch's operations: the sum over precisions of operations / peak."""
        return sum(number / self.peak_of(precision) for precision, number in cost.operations.items())

    def transfer_s(self, cost: GraphCost) -> float:
        """Least time of a batch's bytes, elementwise operators fused."""
        return cost.fused_bytes / self.bandwidth_for(cost)

    def bound_of(self, cost: GraphCost) -> Bound:
        """Which of the two takes longer."""
        if self.compute_s(cost) >= self.transfer_s(cost):
            return "compute"
        return "cache" if self.is_cached(cost) else "memory"


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """A model at one batch. Intensities are operations per byte."""

    batch: int
    cost: GraphCost
    intensity: float
    unfused_intensity: float  # with every operator alone: a lower bound
    bound: Bound
    most_rows_per_s: float  # the roofline's upper bound of throughput
    measured_rows_per_s: float | None  # from the profile; None: there is no row for this batch

    @property
    def most_operations_per_s(self) -> float:
        """The upper bound as operations/s."""
        return self.most_rows_per_s * self.cost.total_operations / self.batch

    @property
    def measured_operations_per_s(self) -> float | None:
        """What was measured as operations/s."""
        if self.measured_rows_per_s is None:
            return None
        return self.measured_rows_per_s * self.cost.total_operations / self.batch

    @property
    def achieved_pct(self) -> float | None:
        """What was measured in percent of the upper bound."""
        return None if self.measured_rows_per_s is None else 100 * self.measured_rows_per_s / self.most_rows_per_s


@dataclass(frozen=True, slots=True)
class ModelRoofline:
    """A model under the ceilings of a device, over batches in ascending order."""

    model: str
    version: str
    engine: str  # whose profile the measured throughput is from
    inputs: dict[str, str]  # input -> datatype and shape that was counted
    points: tuple[RooflinePoint, ...]
    compute_bound_from: int  # batch; 0: at none of those looked at
    remark: str  # why there is no measured throughput, or ""


def point(ceilings: Ceilings, batch: int, cost: GraphCost, measured_rows_per_s: float | None) -> RooflinePoint:
    """Where a batch of this cost lies. A batch that moves and computes nothing has no bound and is not asked for."""
    least_s = max(ceilings.compute_s(cost), ceilings.transfer_s(cost))
    return RooflinePoint(
        batch=batch,
        cost=cost,
        intensity=cost.total_operations / cost.fused_bytes,
        unfused_intensity=cost.total_operations / cost.unfused_bytes,
        bound=ceilings.bound_of(cost),
        most_rows_per_s=batch / least_s,
        measured_rows_per_s=measured_rows_per_s,
    )


def compute_bound_from(batches: Sequence[int], is_compute_bound: Callable[[int], bool]) -> int:
    """The batch from which a model is compute-bound up to the last of `batches` (ascending); 0 where the last is not.

    Looks at `batches`, and halves the gap before the first from which all are.
    """
    known = 0  # from here on all are
    for batch in reversed(batches):
        if is_compute_bound(batch):
            known = batch
            continue
        below = batch
        while known - below > 1:
            middle = (below + known) // 2
            if is_compute_bound(middle):
                known = middle
            else:
                below = middle
        return known
    return known
