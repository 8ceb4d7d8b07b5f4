"""The batch queue of one model version: which waiting requests run together, and when.

Triton's dynamic batcher as a pure data structure: no clock, no task, no worker. Whoever owns it says what time it is.
"""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from efserve.inference import InferRequest
from efserve.model_config import DynamicBatching

# Requests that may wait when the model's own policy sets no limit: every queue is bounded.
QUEUE_LIMIT = 65_536


class BatchQueue:
    """Requests that wait for one model version, oldest first.

    Invariants: `_delayed` holds requests whose timeout has passed under the policy DELAY; they run behind all others.
    No waiting request has a deadline before `_next_deadline_ns`.
    """

    def __init__(self, max_rows: int, batching: DynamicBatching | None) -> None:
        self._max_rows = max_rows
        self._batches = batching is not None and max_rows > 1
        batching = batching or DynamicBatching()
        self._preferred = frozenset(batching.preferred_batch_sizes or (max_rows,))
        self._largest_preferred = max(self._preferred)
        self._delay_ns = batching.max_queue_delay_us * 1000
        self._policy = batching.queue_policy
        self._limit = batching.queue_policy.max_queue_size or QUEUE_LIMIT
        self._waiting: deque[InferRequest] = deque()
        self._delayed: deque[InferRequest] = deque()
        self._next_deadline_ns: int | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._delayed)

    def __repr__(self) -> str:
        return f"<BatchQueue {len(self._waiting)} waiting, {len(self._delayed)} delayed>"

    @property
    def is_timed(self) -> bool:
        """Whether delays or timeouts can make something happen while nothing arrives."""
        policy = self._policy
        return bool(self._delay_ns or policy.default_timeout_us or policy.allow_timeout_override)

    def add(self, request: InferRequest) -> bool:
        """Takes the request in, or answers False: the queue is full."""
        if len(self) >= self._limit:
            return False
        if timeout_us := self._timeout_us(request):
            deadline_ns = request.deadline_ns = request.arrival_ns + timeout_us * 1000
            if self._next_deadline_ns is None or deadline_ns < self._next_deadline_ns:
                self._next_deadline_ns = deadline_ns
        self._waiting.append(request)
        return True

    def put_back(self, requests: Iterable[InferRequest]) -> None:
        """Requests whose worker died go in front again, in the order given; limits and deadlines are behind them."""
        for request in reversed(list(requests)):
            request.deadline_ns = None
            self._waiting.appendleft(request)

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Takes out the requests that have waited too long and are to be rejected; delays those to be delayed."""
        if self._next_deadline_ns is None or now_ns < self._next_deadline_ns:
            return []
        late = [r for r in self._waiting if r.deadline_ns is not None and r.deadline_ns <= now_ns]
        on_time = [r for r in self._waiting if r.deadline_ns is None or r.deadline_ns > now_ns]
        self._waiting = deque(on_time)
        self._next_deadline_ns = min((r.deadline_ns for r in on_time if r.deadline_ns is not None), default=None)
        if self._policy.timeout_action == "DELAY":
            self._delayed.extend(late)
            return []
        return late

    def take(self, now_ns: int) -> list[InferRequest]:
        """The batch that should run now, taken out; empty when nothing waits or it is worth waiting for more."""
        return [(self._waiting or self._delayed).popleft() for _ in range(self._count(now_ns))]

    def due_ns(self, now_ns: int) -> int | None:
        """When to look again if nothing arrives and no worker becomes free: a delay ends or a deadline passes.

        A delay that is over already asks for nothing: its batch waits for a worker.
        """
        if not self._waiting or not self._delay_ns:
            return self._next_deadline_ns
        delay_end_ns = self._waiting[0].arrival_ns + self._delay_ns
        if delay_end_ns <= now_ns:
            return self._next_deadline_ns
        return delay_end_ns if self._next_deadline_ns is None else min(delay_end_ns, self._next_deadline_ns)

    def drain(self) -> list[InferRequest]:
        """Takes everything out."""
        everything = [*self._waiting, *self._delayed]
        self._waiting.clear()
        self._delayed.clear()
        self._next_deadline_ns = None
        return everything

    def _timeout_us(self, request: InferRequest) -> int:
        policy = self._policy
        default_us = policy.default_timeout_us
        if policy.allow_timeout_override and request.timeout_us:
            return min(request.timeout_us, default_us) if default_us else request.timeout_us
        return default_us

    def _count(self, now_ns: int) -> int:
        """How many requests from the front run now; 0: none waits, or wait for more.

        The order of the rules is that of Triton's DynamicBatchScheduler::GetDynamicBatch.
        """
        if not self._batches:
            return 1 if self._waiting or self._delayed else 0
        rows = count = preferred_count = 0
        complete = False  # the next request cannot join this batch
        first: InferRequest | None = None
        for request in chain(self._waiting, self._delayed):
            if first is None:
                first = request
            elif rows + request.rows > self._max_rows or request.shape_key != first.shape_key:
                complete = True
                break
            rows += request.rows
            count += 1
            if rows in self._preferred:
                preferred_count = count
        if first is None:
            return 0
        late = self._delay_ns != 0 and now_ns - first.arrival_ns >= self._delay_ns
        if preferred_count and not late:
            return preferred_count
        if complete or late or not self._delay_ns or rows >= self._largest_preferred:
            return count
        return 0
