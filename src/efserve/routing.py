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


class _WorkerSlots:
    """Free slots of a worker, and the batches that it holds."""

    __slots__ = ("free", "running")

    def __init__(self, slots: int) -> None:
        self.free = list(range(slots))
        self.running: dict[int, list[InferRequest]] = {}


class Router:
    """Decides for one model version.

    Invariant: a request is in the queue, or in exactly one slot of one worker, or has left.
    """

    def __init__(self, config: ModelConfig, *, hold_requests: int = 0) -> None:
        """With `hold_requests`, nothing runs before so many requests have waited at once; for tests of batching."""
        self._name = config.name
        self._hold_requests = hold_requests
        self._queue = BatchQueue(config.max_rows, config.dynamic_batching)
        self._workers: dict[int, _WorkerSlots] = {}
        self._closed: EfserveError | None = None

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

    def add(self, request: InferRequest) -> Sequence[Action]:
        """A request has arrived, at its `arrival_ns`."""
        if self._closed is not None:
            return (Fail(request, self._closed),)
        if not self._queue.add(request):
            return (Fail(request, Unavailable("Exceeds maximum queue size")),)
        return self._dispatch(request.arrival_ns)

    def cancel(self, request: InferRequest) -> Sequence[Action]:
        """The client of a request has gone: it leaves the queue, where it still waits; what runs is not disturbed."""
        return (Fail(request, Cancelled("the client has gone")),) if self._queue.remove(request) else ()

    def worker_ready(self, worker: int, slots: int, now_ns: int) -> Sequence[Action]:
        """A worker can take batches, as many at once as it has slots."""
        assert worker not in self._workers
        self._workers[worker] = _WorkerSlots(slots)
        return self._dispatch(now_ns)

    def batch_done(self, worker: int, slot: int, now_ns: int) -> tuple[list[InferRequest], Sequence[Action]]:
        """The worker has answered a batch: its requests, for the owner to answer, and what to do next."""
        slots = self._workers[worker]
        batch = slots.running.pop(slot)
        slots.free.append(slot)
        return batch, self._dispatch(now_ns)

    def worker_dead(self, worker: int, now_ns: int) -> Sequence[Action]:
        """A worker is gone: what it was running runs once more, alone, or fails if it has done so already.

        Alone, so that a request that kills its worker takes no other along. Batches that had not begun just go back.
        """
        held = self._workers.pop(worker, None)
        if held is None:
            return ()
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

    def reopen(self) -> None:
        """Requests are taken again."""
        self._closed = None

    def tick(self, now_ns: int) -> Sequence[Action]:
        """Time has passed: `due_ns` has come."""
        return self._dispatch(now_ns)

    def due_ns(self, now_ns: int) -> int | None:
        """When `tick` is wanted; None: only when something else happens."""
        return self._queue.due_ns(now_ns)

    def _dispatch(self, now_ns: int) -> Sequence[Action]:
        actions: list[Action] = []
        queue = self._queue
        if late := queue.expire(now_ns):
            actions.extend(Fail(request, Unavailable("Request timeout expired")) for request in late)
        if self._hold_requests and len(queue) < self._hold_requests:
            return actions
        self._hold_requests = 0
        while len(queue):
            worker = self._most_free()
            if worker < 0:
                break
            batch = queue.take(now_ns)
            if not batch:
                break
            if gone := [request for request in batch if request.cancelled]:
                actions.extend(Fail(request, Cancelled("the client has gone")) for request in gone)
                batch = [request for request in batch if not request.cancelled]
                if not batch:
                    continue
            slots = self._workers[worker]
            slot = slots.free.pop()
            slots.running[slot] = batch
            actions.append(Send(worker, slot, batch))
        return actions

    def _most_free(self) -> int:
        """The worker with the most free slots, -1 when none has any."""
        best, most = -1, 0
        for number, worker in self._workers.items():
            free = len(worker.free)
            if free > most:
                best, most = number, free
        return best


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
