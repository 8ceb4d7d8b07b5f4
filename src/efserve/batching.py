"""The batch queue of one model version: which waiting requests run together, and when.

Triton's dynamic batcher as a pure data structure: no clock, no task, no worker. Whoever owns it says what time it is.
"""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import chain

from efserve.inference import InferRequest
from efserve.model_config import DynamicBatching, QueuePolicy

# Requests that may wait when the model's own policy sets no limit: every queue is bounded.
QUEUE_LIMIT = 65_536
MAX_IDLE_LEVELS = 64
_SPARE_DEADLINES = 64  # of requests that have left; more, and more than half of all, are swept out

_Line = OrderedDict[int, InferRequest]  # by place: what leaves from the middle costs no more than what leaves in front


class _Level:
    """Requests of one priority.

    Invariants: `delayed` holds requests whose timeout has passed under the policy DELAY; they run behind all others of
    their level. Each request has a place of its own, ascending in `waiting`. While `is_ordered`, every waiting request
    has a deadline, and none a later one than those behind it; else each deadline is with its request's place in the
    heap `deadlines`, where those of requests that have left may still be.
    """

    __slots__ = (
        "deadlines",
        "delayed",
        "first_place",
        "is_ordered",
        "last_deadline_ns",
        "last_place",
        "limit",
        "policy",
        "waiting",
    )

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.limit = policy.max_queue_size or QUEUE_LIMIT
        self.waiting: _Line = OrderedDict()
        self.delayed: _Line = OrderedDict()
        self.first_place = self.last_place = 0  # that requests have had
        self.is_ordered = False
        self.last_deadline_ns = 0  # of the request that came last
        self.deadlines: list[tuple[int, int]] = []  # ns, place

    def timeout_us(self, request: InferRequest) -> int:
        """How long the request may wait; 0: for ever."""
        default_us = self.policy.default_timeout_us
        if self.policy.allow_timeout_override and request.timeout_us:
            return min(request.timeout_us, default_us) if default_us else request.timeout_us
        return default_us

    def append(self, request: InferRequest) -> None:
        """The request waits from now on."""
        request.place = self.last_place = self.last_place + 1
        if request.deadline_ns is not None:
            self._expect(request.deadline_ns, request.place)
        self.waiting[request.place] = request

    def put_in_front(self, request: InferRequest) -> None:
        """The request, which has no deadline, runs before all others."""
        self._end_order()
        request.place = self.first_place = self.first_place - 1
        self.waiting[request.place] = request
        self.waiting.move_to_end(request.place, last=False)

    @property
    def next_deadline_ns(self) -> int | None:
        """The first deadline of all that wait; None where none has one."""
        if self.is_ordered:
            return _first(self.waiting).deadline_ns if self.waiting else None
        while self.deadlines and self.deadlines[0][1] not in self.waiting:
            heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else None

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Takes out what is to be rejected, delays what is to be delayed."""
        places: list[int] = []  # an overloaded queue is long, and must not be searched at every arrival
        if self.is_ordered:
            for place, request in self.waiting.items():
                if request.deadline_ns is None or request.deadline_ns > now_ns:
                    break
                places.append(place)
        else:
            while self.deadlines and self.deadlines[0][0] <= now_ns:
                places.append(heappop(self.deadlines)[1])
            places = sorted(place for place in places if place in self.waiting)
        late = [self.waiting.pop(place) for place in places]
        if self.policy.timeout_action == "DELAY":
            self.delayed.update(zip(places, late, strict=True))
            return []
        return late

    def _expect(self, deadline_ns: int, place: int) -> None:
        if not self.waiting:  # without a default, the next ones may have no deadline
            self.is_ordered = self.policy.default_timeout_us > 0
            self.deadlines.clear()
        elif deadline_ns < self.last_deadline_ns:
            self._end_order()
        self.last_deadline_ns = deadline_ns
        if not self.is_ordered:
            heappush(self.deadlines, (deadline_ns, place))
            if len(self.deadlines) > 2 * len(self.waiting) + _SPARE_DEADLINES:
                self.deadlines = [entry for entry in self.deadlines if entry[1] in self.waiting or entry[1] == place]
                heapify(self.deadlines)

    def _end_order(self) -> None:
        if self.is_ordered:
            self.is_ordered = False
            waiting = self.waiting.items()
            self.deadlines = [(each.deadline_ns, place) for place, each in waiting if each.deadline_ns is not None]
            heapify(self.deadlines)


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
        self._lines: tuple[_Line, ...] = ()
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
        level.append(request)
        self._size += 1
        self.rows += request.rows
        return True

    def put_back(self, requests: Iterable[InferRequest]) -> None:
        """Requests whose worker died go in front of their level again, in the order given.

        Limits and deadlines are behind them.
        """
        for request in reversed(list(requests)):
            request.deadline_ns = None
            self._level(request).put_in_front(request)
            self._size += 1
            self.rows += request.rows

    def remove(self, request: InferRequest) -> bool:
        """Takes one request out; False when it does not wait here."""
        level = self._level(request)
        for line in (level.waiting, level.delayed):
            if line.get(request.place) is request:
                del line[request.place]
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
        return next((_first(line) for line in self._lines if line), None)

    def take(self, now_ns: int, most_rows: int = 0) -> list[InferRequest]:
        """The batch that should run now, taken out; empty when nothing waits or it is worth waiting for more.

        `most_rows` is the limit of the worker that is to run it, where that is less than the model's.
        """
        count = self._count(now_ns, min(most_rows or self._max_rows, self._max_rows))
        self._size -= count
        batch: list[InferRequest] = []
        for line in self._lines:
            while line and len(batch) < count:
                batch.append(line.popitem(last=False)[1])
        self.rows -= sum([request.rows for request in batch])
        return batch

    def due_ns(self, now_ns: int, *, has_worker: bool = False) -> int | None:
        """When to look again if nothing arrives and no worker becomes free: a delay ends or a deadline passes.

        A delay that is over asks for nothing while its batch waits for a worker; where there is one (`has_worker`) it
        has ended since somebody last looked, and it is time now.
        """
        if not self._delay_ns:
            return self._next_deadline_ns
        oldest_ns = min([_first(line).arrival_ns for line in self._lines if line], default=None)
        if oldest_ns is None:
            return self._next_deadline_ns
        if oldest_ns + self._delay_ns <= now_ns:
            return now_ns if has_worker else self._next_deadline_ns
        delay_end_ns = oldest_ns + self._delay_ns
        return delay_end_ns if self._next_deadline_ns is None else min(delay_end_ns, self._next_deadline_ns)

    def drain(self) -> list[InferRequest]:
        """Takes everything out."""
        everything = list(self._in_order())
        for line in self._lines:
            line.clear()
        self._size = self.rows = 0
        self._next_deadline_ns = None
        return everything

    def _in_order(self) -> Iterable[InferRequest]:
        return chain.from_iterable(map(OrderedDict.values, self._lines))

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
        for request in self._in_order():
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


def _first(line: _Line) -> InferRequest:
    return next(iter(line.values()))
