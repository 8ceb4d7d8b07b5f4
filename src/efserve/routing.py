"""The router of one model version: requests, workers, deaths and deadlines go in; what to do comes out.

Pure and synchronous. Knows workers by number and their slots, not their processes; the server and the simulator carry
out its actions. Each request that goes in comes out exactly once: sent, failed, or sent again after a death.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from efserve.batching import BatchQueue
from efserve.errors import Cancelled, EfserveError, Unavailable, WorkerDied
from efserve.inference import InferRequest, Outcome
from efserve.model_config import ModelConfig
from efserve.turns import Terms, Turns


@dataclass(frozen=True, slots=True)
class Send:
    """Write the batch into the worker's slot and let it run."""

    worker: int
    slot: int
    batch: list[InferRequest]


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer the request with the error."""

    request: InferRequest
    error: EfserveError


Action = Send | Fail

# A worker whose batches take less is given the next one ahead, for the pause between two would tell. Where they take
# longer, a batch that could still grow stays in the queue until the worker is free, as Triton's do.
AHEAD_NS = 5_000_000


class _WorkerSlots:
    """Free slots of a worker, and the batches that it holds."""

    __slots__ = ("began_ns", "free", "free_ns", "given_s", "is_quick", "running", "terms")

    def __init__(self, slots: int, terms: Terms | None) -> None:
        self.free = list(range(slots))
        self.running: dict[int, list[InferRequest]] = {}
        self.began_ns = 0  # of the batch that runs
        self.is_quick = False  # its last batch took less than AHEAD_NS
        self.terms = terms
        self.free_ns = 0  # of a worker with terms: when what it runs is expected to end
        self.given_s = 0.0  # of a worker with terms: all its rows so far over its capacity


class Router:
    """Decides for one model version.

    Workers with `terms` are those of a plan: each has its own largest batch, gets requests in proportion to what it
    carries, and runs only in its turn where it shares its partition. Either all workers have terms or none has.

    Invariant: a request is in the queue, or in exactly one slot of one worker, or has left.
    """

    def __init__(self, config: ModelConfig, *, hold_requests: int = 0, slo_ns: int = 0) -> None:
        """With `hold_requests`, nothing runs before so many requests have waited at once; for tests of batching.

        With `slo_ns`, a request that its workers cannot answer within it fails as soon as that is known.
        """
        self._name = config.name
        self._hold_requests = hold_requests
        self._slo_ns = slo_ns
        self._has_terms = False
        self._queue = BatchQueue(config.max_rows, config.dynamic_batching)
        self._workers: dict[int, _WorkerSlots] = {}
        self._closed: EfserveError | None = None
        self._max_rows = config.max_rows
        self._grows = config.dynamic_batching is not None and config.max_rows > 1
        self._may_run_ahead = config.dynamic_batching is None or config.dynamic_batching.may_run_ahead

    def __repr__(self) -> str:
        queued, workers = len(self._queue), len(self._workers)
        return f"<Router {self._name}: {queued} queued, {self.in_flight} in flight, {workers} workers>"

    @property
    def is_timed(self) -> bool:
        """Whether time alone can make something happen: `due_ns` is worth asking."""
        return self._queue.is_timed

    @property
    def in_flight(self) -> int:
        """Requests that a worker holds."""
        return sum(len(batch) for worker in self._workers.values() for batch in worker.running.values())

    @property
    def pending(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    @property
    def not_begun(self) -> int:
        """Requests that do not run yet: those that wait for a worker, and those that one was given ahead."""
        ahead = [batch for worker in self._workers.values() for batch in [*worker.running.values()][1:]]
        return len(self._queue) + sum(map(len, ahead))

    def add(self, request: InferRequest) -> Sequence[Action]:
        """A request has arrived, at its `arrival_ns`."""
        if self._closed is not None:
            return (Fail(request, self._closed),)
        if self._slo_ns and not self._is_in_time(request):
            return (self._too_late(request),)
        if not self._queue.add(request):
            return (Fail(request, Unavailable("Exceeds maximum queue size")),)
        return self._dispatch(request.arrival_ns)

    def cancel(self, request: InferRequest) -> Sequence[Action]:
        """The client of a request has gone: it leaves the queue, where it still waits; what runs is not disturbed."""
        return (Fail(request, Cancelled("the client has gone")),) if self._queue.remove(request) else ()

    def worker_ready(self, worker: int, slots: int, now_ns: int, terms: Terms | None = None) -> Sequence[Action]:
        """A worker can take batches, as many at once as it has slots.

        One at a time where it has terms, and where the queue's limits, timeouts or priorities would not hold for what
        has left it early; Triton does so, too.
        """
        assert worker not in self._workers
        assert (terms is not None) == self._has_terms or not self._workers
        new = _WorkerSlots(slots if terms is None and self._may_run_ahead else 1, terms)
        new.given_s = min((other.given_s for other in self._workers.values()), default=0.0)
        self._workers[worker] = new
        self._has_terms = terms is not None
        if terms is not None and terms.turns is not None:
            terms.turns.join(self)
        return self._dispatch(now_ns)

    def batch_done(self, worker: int, slot: int, now_ns: int) -> tuple[list[InferRequest], Sequence[Action]]:
        """The worker has answered a batch: its requests, for the owner to answer, and what to do next.

        Where the worker has turns, others may be next: ask `pass_on`.
        """
        slots = self._workers[worker]
        batch = slots.running.pop(slot)
        slots.free.append(slot)
        slots.is_quick = now_ns - slots.began_ns < AHEAD_NS
        slots.began_ns = now_ns
        if slots.terms is not None and slots.terms.turns is not None:
            slots.terms.turns.give_back()
            return batch, ()
        return batch, self._dispatch(now_ns)

    def worker_dead(self, worker: int, now_ns: int) -> Sequence[Action]:
        """A worker is gone: what it was running runs once more, alone, or fails if it has done so already.

        Alone, so that a request that kills its worker takes no other along. Batches that had not begun just go back.
        """
        held = self._workers.pop(worker, None)
        if held is None:
            return ()
        if held.terms is not None and held.terms.turns is not None:
            held.terms.turns.leave(self)
        batches = list(held.running.values())  # in the order in which they were sent, and so run
        if self._closed is not None:
            return tuple([Fail(request, self._closed) for batch in batches for request in batch])
        running = batches[0] if batches else []
        again = [request for request in running if not request.retried]
        failed = [request for request in running if request.retried]
        for request in again:
            request.retried = True
            request.shape_key = object()  # equal to no other
        self._queue.put_back([*again, *(request for batch in batches[1:] for request in batch)])
        error = WorkerDied(f"the worker of '{self._name}' died twice while this request was running")
        return (*(Fail(request, error) for request in failed), *self._dispatch(now_ns))

    def close(self, error: EfserveError) -> Sequence[Action]:
        """No request is taken any more and none that waits will run; batches in flight go on."""
        self._closed = error
        return tuple(Fail(request, error) for request in self._queue.drain())

    def tick(self, now_ns: int) -> Sequence[Action]:
        """Time has passed: `due_ns` has come."""
        return self._dispatch(now_ns)

    def due_ns(self, now_ns: int) -> int | None:
        """When `tick` is wanted; None: only when something else happens."""
        return self._queue.due_ns(now_ns, has_worker=self._has_worker())

    def _has_worker(self) -> bool:
        """Whether a batch could begin now; never with an SLO, where that depends on the requests."""
        if not self._has_terms:
            return not self._hold_requests and self._most_free() >= 0
        terms = [slots.terms for slots in self._workers.values() if slots.free and slots.terms is not None]
        return not self._slo_ns and any(each.turns is None or each.turns.holder is None for each in terms)

    def _dispatch(self, now_ns: int) -> Sequence[Action]:
        actions: list[Action] = []
        queue = self._queue
        if late := queue.expire(now_ns):
            actions.extend(Fail(request, Unavailable("Request timeout expired")) for request in late)
        if self._hold_requests and len(queue) < self._hold_requests:
            return actions
        self._hold_requests = 0
        while len(queue):
            worker = self._next_by_terms(now_ns, actions) if self._has_terms else self._most_free()
            if worker < 0:
                break
            slots = self._workers[worker]
            batch = queue.take(now_ns, slots.terms.rows if slots.terms is not None else 0)
            if not batch:
                break
            if gone := [request for request in batch if request.cancelled]:
                actions.extend(Fail(request, Cancelled("the client has gone")) for request in gone)
                batch = [request for request in batch if not request.cancelled]
                if not batch:
                    continue
            slot = slots.free.pop()
            if not slots.running:
                slots.began_ns = now_ns
            slots.running[slot] = batch
            if slots.terms is not None:
                self._begin(slots, slots.terms, sum([request.rows for request in batch]), now_ns)
            actions.append(Send(worker, slot, batch))
        return actions

    def _most_free(self) -> int:
        """The worker with the most free slots, -1 when none has any for what waits."""
        best, most = -1, 0
        for number, worker in self._workers.items():
            free = len(worker.free)
            if free > most:
                best, most = number, free
        if best < 0 or not self._grows or not self._workers[best].running or self._workers[best].is_quick:
            return best
        return best if self._queue.rows >= self._max_rows else -1

    def _begin(self, slots: _WorkerSlots, terms: Terms, rows: int, now_ns: int) -> None:
        slots.given_s += rows / terms.capacity_per_s
        slots.free_ns = now_ns + terms.took_ns(rows)
        if terms.turns is not None:
            terms.turns.take(self, slots.free_ns)

    def _next_by_terms(self, now_ns: int, actions: list[Action]) -> int:
        """Of the workers that may begin a batch the one that was given least for what it carries; -1: none.

        With an SLO it must be one that answers the first request in time. A request that no worker can answer in time
        any more fails; one that only a busy worker can waits for that.
        """
        while (first := self._queue.first) is not None:
            late_ns = first.arrival_ns + self._slo_ns if self._slo_ns and not first.retried else 0
            rows = self._queue.rows if late_ns else 0
            best, least_s, can_wait = -1, float("inf"), not self._workers
            for number, slots in self._workers.items():
                terms = slots.terms
                assert terms is not None
                if late_ns and _free_ns(slots, terms, now_ns) + terms.took_ns(rows) > late_ns:
                    continue
                if not slots.free or (terms.turns is not None and terms.turns.holder is not None):
                    can_wait = True
                elif slots.given_s < least_s:
                    best, least_s = number, slots.given_s
            if best >= 0 or can_wait or not late_ns:
                return best
            self._queue.remove(first)
            actions.append(self._too_late(first))
        return -1

    def _is_in_time(self, request: InferRequest) -> bool:
        """Whether the workers could answer everything that waits, and then this request, by its deadline."""
        rows = self._queue.rows + request.rows
        deadline_ns = request.arrival_ns + self._slo_ns
        for slots in self._workers.values():
            terms = slots.terms
            if terms is None:
                return True
            spare_ns = deadline_ns - _free_ns(slots, terms, request.arrival_ns)
            if spare_ns >= terms.batch_ns:
                rows -= spare_ns // terms.batch_ns * terms.rows
            elif spare_ns >= terms.took_ns(rows):
                rows = 0
            if rows <= 0:
                return True
        return not self._workers  # a worker that died is back soon, perhaps

    def _too_late(self, request: InferRequest) -> Fail:
        slo_ms = self._slo_ns / 1e6
        return Fail(request, Unavailable(f"'{self._name}' cannot answer within its SLO of {slo_ms:g} ms any more"))


def _free_ns(slots: _WorkerSlots, terms: Terms, now_ns: int) -> int:
    """When a worker could begin its next batch, if nobody else wants its partition."""
    if terms.turns is not None:
        return now_ns if terms.turns.holder is None else max(now_ns, terms.turns.free_ns)
    return now_ns if slots.free else max(now_ns, slots.free_ns)


def pass_on(turns: Turns, now_ns: int) -> list[tuple[Router, Sequence[Action]]]:
    """A shared partition is free: asks its models' routers, in turn, until one begins a batch; what each has to do."""
    done: list[tuple[Router, Sequence[Action]]] = []
    for router in turns.following():
        assert isinstance(router, Router)
        if actions := router.tick(now_ns):
            done.append((router, actions))
        if turns.holder is not None:
            break
    return done


class AnswerOrder:
    """Lets the answers of one model version leave in the order in which their requests came; errors leave at once."""

    def __init__(self) -> None:
        self._open: deque[_Turn] = deque()

    def admit(self, request: InferRequest) -> None:
        """From now on the request's answer waits for those of the requests admitted before."""
        turn = _Turn(request.done)
        self._open.append(turn)
        request.done = partial(self._done, turn)

    def _done(self, turn: "_Turn", outcome: Outcome) -> None:
        turn.is_done = True
        if isinstance(outcome, EfserveError):
            turn.done(outcome)
        else:
            turn.outcome = outcome
        while self._open and self._open[0].is_done:
            ready = self._open.popleft()
            if ready.outcome is not None:
                ready.done(ready.outcome)


@dataclass(slots=True)
class _Turn:
    done: Callable[[Outcome], None]
    is_done: bool = False
    outcome: Outcome | None = None


@dataclass(slots=True)
class RestartPolicy:
    """When a dead worker's place is filled again: at once, then ever later; too many deaths in a minute end it."""

    max_deaths: int = 5
    window_s: float = 60.0
    first_delay_s: float = 0.1
    _deaths_s: tuple[float, ...] = ()

    def died(self, now_s: float) -> float | None:
        """Seconds to wait before the next start, or None: give up."""
        self._deaths_s = (*(t for t in self._deaths_s if now_s - t < self.window_s), now_s)
        if len(self._deaths_s) >= self.max_deaths:
            return None
        return self.first_delay_s * float(2 ** (len(self._deaths_s) - 1))
