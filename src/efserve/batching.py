"""The batch queue of one model version: which waiting requests run together, and when.

Triton's dynamic batcher as a pure data structure: no clock, no task, no worker. Whoever owns it says what time it is.
"""

from collections import deque
from collections.abc import Iterable
from itertools import chain, takewhile

from efserve.inference import InferRequest
from efserve.model_config import DynamicBatching, QueuePolicy

# Requests that may wait when the model's own policy sets no limit: every queue is bounded.
QUEUE_LIMIT = 65_536
MAX_IDLE_LEVELS = 64


class _Level:
    """Requests of one priority.

    Invariants: `delayed` holds requests whose timeout has passed under the policy DELAY; they run behind all others of
    their level. While `is_ordered`, every waiting request has a deadline, and none a later one than those behind it.
    """

    __slots__ = ("delayed", "is_ordered", "last_deadline_ns", "limit", "policy", "waiting")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.limit = policy.max_queue_size or QUEUE_LIMIT
        self.waiting: deque[InferRequest] = deque()
        self.delayed: deque[InferRequest] = deque()
        self.is_ordered = False
        self.last_deadline_ns = 0  # of the request that came last

    def timeout_us(self, request: InferRequest) -> int:
        """How long the request may wait; 0: for ever."""
        default_us = self.policy.default_timeout_us
        if self.policy.allow_timeout_override and request.timeout_us:
            return min(request.timeout_us, default_us) if default_us else request.timeout_us
        return default_us

    def expect(self, deadline_ns: int) -> None:
        """The next request to wait has this deadline."""
        if not self.waiting:  # without a default, the next ones may have no deadline
            self.is_ordered = self.policy.default_timeout_us > 0
        elif deadline_ns < self.last_deadline_ns:
            self.is_ordered = False
        self.last_deadline_ns = deadline_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """The first deadline of all that wait; None where none has one."""
        if self.is_ordered:
            return self.waiting[0].deadline_ns if self.waiting else None
        return min((r.deadline_ns for r in self.waiting if r.deadline_ns is not None), default=None)

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Takes out what is to be rejected, delays what is to be delayed."""
        if self.is_ordered:  # as a rule: an overloaded queue is long, and must not be searched at every arrival
            late = list(takewhile(lambda r: r.deadline_ns is not None and r.deadline_ns <= now_ns, self.waiting))
            for _ in late:
                self.waiting.popleft()
        else:
            late = [r for r in self.waiting if r.deadline_ns is not None and r.deadline_ns <= now_ns]
            on_time = [r for r in self.waiting if r.deadline_ns is None or r.deadline_ns > now_ns]
            self.waiting.clear()
            self.waiting.extend(on_time)
        if self.policy.timeout_action == "DELAY":
            self.delayed.extend(late)
            return []
        return late


class BatchQueue:
    """Requests that wait for one model version: by priority, then the oldest first.

    Invariants: `_size` is the number of requests in all `_lines`, which are the levels' queues in the order in which
    they run, and `rows` that of their rows. No waiting request has a deadline before `_next_deadline_ns`. A config may
    have 2^64 levels, so a level exists from its first request on, and no more than `MAX_IDLE_LEVELS` outlive their
    last.
    """

    def __init__(self, max_rows: int, batching: DynamicBatching | None) -> None:
        self._max_rows = max_rows
        self._batches = batching is not None and max_rows > 1
        self._batching = batching = batching or DynamicBatching()
        self._preferred = frozenset(batching.preferred_batch_sizes or (max_rows,))
        self._largest_preferred = max(self._preferred)
        self._delay_ns = batching.max_queue_delay_us * 1000
        self._levels: dict[int, _Level] = {}
        self._lines: tuple[deque[InferRequest], ...] = ()
        self._size = 0
        self.rows = 0  # of all requests together
        self._next_deadline_ns: int | None = None

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        delayed = sum(len(level.delayed) for level in self._levels.values())
        return f"<BatchQueue {self._size - delayed} waiting, {delayed} delayed>"

    @property
    def is_timed(self) -> bool:
        """Whether delays or timeouts can make something happen while nothing arrives."""
        policies = (self._batching.queue_policy, *self._batching.priority_policies.values())
        return bool(self._delay_ns) or any(p.default_timeout_us or p.allow_timeout_override for p in policies)

    def add(self, request: InferRequest) -> bool:
        """Takes the request in, or answers False: the queue is full."""
        level = self._level(request)
        if len(level.waiting) + len(level.delayed) >= level.limit or self._size >= QUEUE_LIMIT:
            return False
        if timeout_us := level.timeout_us(request):
            deadline_ns = request.deadline_ns = request.arrival_ns + timeout_us * 1000
            if self._next_deadline_ns is None or deadline_ns < self._next_deadline_ns:
                self._next_deadline_ns = deadline_ns
            level.expect(deadline_ns)
        level.waiting.append(request)
        self._size += 1
        self.rows += request.rows
        return True

    def put_back(self, requests: Iterable[InferRequest]) -> None:
        """Requests whose worker died go in front of their level again, in the order given.

        Limits and deadlines are behind them.
        """
        for request in reversed(list(requests)):
            request.deadline_ns = None
            level = self._level(request)
            level.is_ordered = False
            level.waiting.appendleft(request)
            self._size += 1
            self.rows += request.rows

    def remove(self, request: InferRequest) -> bool:
        """Takes one request out; False when it does not wait here."""
        level = self._level(request)
        for line in (level.waiting, level.delayed):
            if request in line:
                line.remove(request)
                self._size -= 1
                self.rows -= request.rows
                return True
        return False

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Takes out the requests that have waited too long and are to be rejected; delays those to be delayed."""
        if self._next_deadline_ns is None or now_ns < self._next_deadline_ns:
            return []
        late = [request for level in self._levels.values() for request in level.expire(now_ns)]
        self._size -= len(late)
        self.rows -= sum([request.rows for request in late])
        deadlines = [level.next_deadline_ns for level in self._levels.values()]
        self._next_deadline_ns = min((each for each in deadlines if each is not None), default=None)
        return late

    @property
    def first(self) -> InferRequest | None:
        """The request that runs next."""
        return next((line[0] for line in self._lines if line), None)

    def take(self, now_ns: int, most_rows: int = 0) -> list[InferRequest]:
        """The batch that should run now, taken out; empty when nothing waits or it is worth waiting for more.

        `most_rows` is the limit of the worker that is to run it, where that is less than the model's.
        """
        count = self._count(now_ns, min(most_rows or self._max_rows, self._max_rows))
        self._size -= count
        batch: list[InferRequest] = []
        for line in self._lines:
            while line and len(batch) < count:
                batch.append(line.popleft())
        self.rows -= sum([request.rows for request in batch])
        return batch

    def due_ns(self, now_ns: int, *, has_worker: bool = False) -> int | None:
        """When to look again if nothing arrives and no worker becomes free: a delay ends or a deadline passes.

        A delay that is over asks for nothing while its batch waits for a worker; where there is one (`has_worker`) it
        has ended since somebody last looked, and it is time now.
        """
        if not self._delay_ns:
            return self._next_deadline_ns
        oldest_ns = min([line[0].arrival_ns for line in self._lines if line], default=None)
        if oldest_ns is None:
            return self._next_deadline_ns
        if oldest_ns + self._delay_ns <= now_ns:
            return now_ns if has_worker else self._next_deadline_ns
        delay_end_ns = oldest_ns + self._delay_ns
        return delay_end_ns if self._next_deadline_ns is None else min(delay_end_ns, self._next_deadline_ns)

    def drain(self) -> list[InferRequest]:
        """Takes everything out."""
        everything = list(chain.from_iterable(self._lines))
        for line in self._lines:
            line.clear()
        self._size = self.rows = 0
        self._next_deadline_ns = None
        return everything

    def _level(self, request: InferRequest) -> _Level:
        number = self._batching.level(request.priority)
        return self._levels.get(number) or self._new_level(number)

    def _new_level(self, number: int) -> _Level:
        if len(self._levels) >= MAX_IDLE_LEVELS:
            self._levels = {n: level for n, level in self._levels.items() if level.waiting or level.delayed}
        level = self._levels[number] = _Level(self._batching.policy(number))
        self._levels = dict(sorted(self._levels.items()))
        self._lines = tuple([line for one in self._levels.values() for line in (one.waiting, one.delayed)])
        return level

    def _count(self, now_ns: int, max_rows: int) -> int:
        """How many requests from the front run now; 0: none waits, or wait for more.

        The order of the rules is that of Triton's DynamicBatchScheduler::GetDynamicBatch.
        """
        if not self._batches:
            return 1 if self._size else 0
        rows = count = preferred_count = 0
        complete = False  # the next request cannot join this batch
        first: InferRequest | None = None
        oldest_ns = 0  # arrival of the oldest in this batch: not the first where there are several levels
        for request in chain.from_iterable(self._lines):
            if first is None:
                first = request
                oldest_ns = request.arrival_ns
            else:
                if not preferred_count and rows + request.rows > self._largest_preferred:
                    preferred_count = count  # no preferred size can be reached any more
                if rows + request.rows > max_rows or request.shape_key != first.shape_key:
                    complete = True
                    break
            oldest_ns = min(oldest_ns, request.arrival_ns)
            rows += request.rows
            count += 1
            if rows in self._preferred:
                preferred_count = count
        if first is None:
            return 0
        late = self._delay_ns != 0 and now_ns - oldest_ns >= self._delay_ns
        if preferred_count and not late:
            return preferred_count
        if complete or late or not self._delay_ns or rows >= min(self._largest_preferred, max_rows):
            return count
        return 0
