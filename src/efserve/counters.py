"""What one model version has done: the counts behind the statistics route and the metrics page.

Only the event loop's thread writes and reads, so every snapshot is consistent: a batch is counted whole or not at all.
Durations of the compute steps count once per request of the batch, as Triton's do.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efserve.inference import BatchTiming, InferRequest

# Upper bounds of the request duration histogram: 1, 2, 5 per decade from 100 us to 10 s.
DURATION_BOUNDS_NS = (*(step * 10**power for power in range(5, 10) for step in (1, 2, 5)), 10**10)
# Upper bounds of the rows-per-batch histogram.
ROWS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Why a request failed, as Triton's metric names it.
REJECTED = "REJECTED"  # the queue was full, or the request waited too long
CANCELED = "CANCELED"  # the client went away
BACKEND = "BACKEND"  # the model raised
OTHER = "OTHER"
FAILURE_REASONS = (BACKEND, CANCELED, OTHER, REJECTED)


@dataclass(slots=True)
class BatchStats:
    """Executions of one batch size (in rows), and how long their steps took together."""

    executions: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


class Histogram:
    """Counts of values by upper bound, the last count being of values beyond every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Number of values up to each bound, and of all."""
        sums, so_far = [], 0
        for count in self.counts:
            so_far += count
            sums.append(so_far)
        return sums


class ModelCounters:
    """Mutable counts of one model version; `pending` tells how many requests wait to be run right now."""

    __slots__ = (
        "batches",
        "cache_hit_ns",
        "cache_hits",
        "cache_miss_ns",
        "cache_misses",
        "compute_infer_ns",
        "compute_input_ns",
        "compute_output_ns",
        "executions",
        "failures",
        "failures_ns",
        "last_inference_ms",
        "pending",
        "queue_ns",
        "request_durations",
        "rows",
        "rows_per_batch",
        "success_ns",
        "successes",
    )

    def __init__(self, pending: Callable[[], int] = lambda: 0) -> None:
        self.pending = pending
        self.successes = 0  # requests
        self.success_ns = 0  # from arrival to outcome
        self.queue_ns = 0  # from arrival to the start of the batch
        self.compute_input_ns = 0
        self.compute_infer_ns = 0
        self.compute_output_ns = 0
        self.cache_hits = 0  # requests that were answered without a run; they are successes too
        self.cache_hit_ns = 0
        self.cache_misses = 0
        self.cache_miss_ns = 0
        self.rows = 0
        self.executions = 0
        self.failures = dict.fromkeys(FAILURE_REASONS, 0)
        self.failures_ns = 0
        self.last_inference_ms = 0  # wall time since the epoch
        self.batches: dict[int, BatchStats] = {}
        self.request_durations = Histogram(DURATION_BOUNDS_NS)
        self.rows_per_batch = Histogram(ROWS_BOUNDS)

    def __repr__(self) -> str:
        return (
            f"<ModelCounters {self.successes} ok, {sum(self.failures.values())} failed, {self.executions} executions>"
        )

    def batch_done(self, requests: Sequence[InferRequest], rows: int, timing: BatchTiming, now_ns: int) -> None:
        """Count one successful execution. Stamps are `time.monotonic_ns()`, `now_ns` is the end of its requests."""
        number = len(requests)
        start_ns, input_end_ns, infer_end_ns, output_end_ns, _ = timing
        input_ns = max(0, input_end_ns - start_ns)
        infer_ns = max(0, infer_end_ns - input_end_ns)
        output_ns = max(0, output_end_ns - infer_end_ns)
        counts, bounds = self.request_durations.counts, self.request_durations.bounds
        durations_ns = 0
        for request in requests:
            arrival_ns = request.arrival_ns
            duration_ns = now_ns - arrival_ns
            durations_ns += duration_ns
            counts[bisect_left(bounds, duration_ns)] += 1
            if start_ns > arrival_ns:
                self.queue_ns += start_ns - arrival_ns
        self.request_durations.total += durations_ns
        self.successes += number
        self.success_ns += durations_ns
        self.compute_input_ns += number * input_ns
        self.compute_infer_ns += number * infer_ns
        self.compute_output_ns += number * output_ns
        self.rows += rows
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.rows_per_batch.add(rows)
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStats()
        batch.executions += 1
        batch.input_ns += input_ns
        batch.infer_ns += infer_ns
        batch.output_ns += output_ns

    def cache_hit(self, spent_ns: int) -> None:
        """Count one request that was answered from the cache."""
        self.successes += 1
        self.success_ns += spent_ns
        self.cache_hits += 1
        self.cache_hit_ns += spent_ns
        self.request_durations.add(spent_ns)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def cache_miss(self, spent_ns: int) -> None:
        """Count one request that the cache had no answer for, and the time that looking took."""
        self.cache_misses += 1
        self.cache_miss_ns += spent_ns

    def failed(self, reason: str, duration_ns: int = 0) -> None:
        """Count one request that was answered with an error; an unknown reason counts as OTHER."""
        self.failures[reason if reason in self.failures else OTHER] += 1
        self.failures_ns += max(0, duration_ns)
