"""One version of a model while it is served: its router, its workers and its counters.

Carries out what the router decides and keeps the version's instances alive. Knows no protocol.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from itertools import count

from efserve.config import delay_scheduler
from efserve.counters import BACKEND, CANCELED, REJECTED, ModelCounters
from efserve.errors import Cancelled, LoadFailed, Unavailable, WorkerDied
from efserve.frontend.service import Placement
from efserve.inference import BatchTiming, InferRequest, Outcome
from efserve.model_config import DEFAULT_MAX_BATCH, ModelConfig
from efserve.partition import Partition
from efserve.placing import equip
from efserve.repository import ModelVersion
from efserve.routing import Action, AnswerOrder, Fail, RestartPolicy, Router, Send
from efserve.server.cache import VersionCache
from efserve.server.options import ServeConfig
from efserve.server.placements import placement_of
from efserve.server.planned import PlannedModel
from efserve.server.shared import Shared
from efserve.worker.handle import Worker, WorkerState
from efserve.worker.spec import WorkerFacts, WorkerSpec

log = logging.getLogger(__name__)

_LEAVE_S = 2.0  # for the workers of a retired version, which have nothing to do, to end by themselves


class VersionState(Enum):
    """The states of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES = {
    VersionState.LOADING: {VersionState.READY, VersionState.UNLOADING, VersionState.UNAVAILABLE},
    VersionState.READY: {VersionState.UNLOADING, VersionState.UNAVAILABLE},
    VersionState.UNLOADING: {VersionState.UNAVAILABLE},
    VersionState.UNAVAILABLE: {VersionState.UNLOADING},
}
_ALIVE = (VersionState.LOADING, VersionState.READY)


class ServedVersion:
    """A model version with its instances. Life: LOADING, READY, then UNAVAILABLE for a reason, or UNLOADING."""

    def __init__(
        self,
        found: ModelVersion,
        labels: dict[str, tuple[str, ...]],
        options: ServeConfig,
        partitions: Sequence[Partition] = (Partition(),),
        shared: Shared | None = None,
        planned: PlannedModel | None = None,
    ) -> None:
        """`partitions`: one for each instance, which keeps it over restarts; `planned` says what each of them runs."""
        self.name = found.model
        self.version = found.version
        self.engine = found.engine
        self.labels = labels
        shared = shared or Shared()
        self.memory = shared.memory
        self.partitions = tuple(partitions)
        self.config = found.config  # completed when the first instance is ready
        self.counters = ModelCounters(lambda: self.pending)
        self.templates: dict[bytes, object] = {}
        self.state = VersionState.LOADING
        self.reason = ""
        self.workers: dict[int, Worker] = {}
        self.places: dict[int, int] = {}  # of these workers: which of the partitions they are on
        self._options = options
        self._spec = WorkerSpec(
            config=found.config,
            version=found.version,
            folder=found.folder,
            engine=found.engine,
            partition=self.partitions[0],
            max_batch=options.max_batch or DEFAULT_MAX_BATCH,
            force_max_batch=options.max_batch or 0,
            spin=options.spin,
            strict_provider=options.strict_provider,
        )
        self._router: Router | None = None
        self._planned = planned
        self._restarts = RestartPolicy()
        self._numbers = count()
        self._instance_tasks: list[asyncio.Task[None]] = []
        self._gives_way = False  # until it serves
        self._is_timed = False  # the queue has delays or timeouts
        self._hold_requests = delay_scheduler()
        self._tracer = shared.tracer
        self._mps = shared.mps
        cache = shared.cache if found.config.response_cache else None
        self._cache = VersionCache(cache, self.counters) if cache is not None else None
        self._order: AnswerOrder | None = None  # where the config asks for it
        self._withdraw = self._withdrawn  # bound once
        self._idle: asyncio.Event | None = None  # while it retires
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def __repr__(self) -> str:
        return f"<ServedVersion {self.name}/{self.version} {self.state.name} {self._router!r}>"

    @property
    def is_ready(self) -> bool:
        """True when a worker can take a request now."""
        return self.state is VersionState.READY and any(w.state is WorkerState.READY for w in self.workers.values())

    @property
    def pending(self) -> int:
        """Requests that do not run yet."""
        return self._router.not_begun if self._router else 0

    def placements(self) -> list[Placement]:
        """One entry per worker process, by instance."""
        by_place = sorted((self.places[number], number) for number in self.workers)
        return [placement_of(self.name, self.version, place, self.workers[number]) for place, number in by_place]

    async def start(self, *, gives_way: bool = False) -> None:
        """Starts all instances; returns when each is ready or the version is unavailable.

        With `gives_way`, their loads leave the processors to the version that still serves.
        """
        loop = asyncio.get_running_loop()
        self._gives_way = gives_way
        started = [loop.create_future() for _ in self.partitions]
        self._instance_tasks = [
            loop.create_task(self._run_instance(place, future)) for place, future in enumerate(started)
        ]
        await asyncio.gather(*started)

    async def retire(self, drain_s: float) -> None:
        """Answers what it has been given, for `drain_s` seconds at most, and ends; to be given nothing more."""
        self._idle = asyncio.Event()
        self._notice_idle()
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("model=%s version=%s did not answer all within %.0f s", self.name, self.version, drain_s)
        await self.stop(_LEAVE_S)
        if self.state is not VersionState.UNAVAILABLE:
            self._move(VersionState.UNAVAILABLE)
            self.reason = "unloaded"

    @property
    def is_idle(self) -> bool:
        """True when every request has been answered."""
        return self._router is None or not (self._router.pending or self._router.in_flight)

    def _notice_idle(self) -> None:
        if self._idle is not None and self.is_idle:
            self._idle.set()

    async def stop(self, drain_s: float) -> None:
        """Ends all instances; what waits is refused, and so is what has not ended in `drain_s` s. May be repeated."""
        if self.state not in (VersionState.UNLOADING, VersionState.UNAVAILABLE):
            self._move(VersionState.UNLOADING)
        if self._router:
            self._carry_out(self._router.close(Unavailable(f"model '{self.name}' is being unloaded")))
        for task in self._instance_tasks:
            task.cancel()
        await asyncio.gather(*self._instance_tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop(drain_s) for worker in list(self.workers.values())))
        for number in list(self.workers):  # what they have not answered is refused
            self._gone(number)

    def kill(self) -> None:
        """Ends all workers at once."""
        for worker in self.workers.values():
            worker.kill()

    def submit(self, request: InferRequest) -> None:
        """Takes a request; its `done` is called once, now or later."""
        router = self._router
        if router is None:
            request.done(Unavailable(f"model '{self.name}' version {self.version} is not ready"))
            return
        if self._cache is not None and self._cache.answers(request):
            return
        request.withdraw = self._withdraw
        if self._order is not None:
            self._order.admit(request)
        self._carry_out(router.add(request))

    def _withdrawn(self, request: InferRequest) -> None:
        if self._router is not None:
            self._carry_out(self._router.cancel(request))

    async def _run_instance(self, place: int, started: asyncio.Future[None]) -> None:
        """One instance for as long as the version lives: a worker, and after its death the next in its place."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                died: asyncio.Future[str] = loop.create_future()
                reason, is_struck = await self._run_worker(place, died, started)
                if self.state is VersionState.LOADING and not is_struck:
                    self._fail(reason)
                if self.state not in _ALIVE:
                    return
                delay_s = self._restarts.died(loop.time())
                if delay_s is None:
                    self._fail(
                        f"its workers died {self._restarts.max_deaths} times within a minute; the last: {reason}"
                    )
                    return
                log.warning(
                    "model=%s version=%s worker ended: %s; restart in %.1f s", self.name, self.version, reason, delay_s
                )
                await asyncio.sleep(delay_s)
                if self.state not in _ALIVE:  # another instance has used up the restarts
                    return
        except Exception as exc:  # noqa: BLE001 - nobody awaits this task: the version would stay as it is, half alive
            self._fail(f"instance {place} could not be kept alive: {type(exc).__name__}: {exc}")
        finally:
            if not started.done():
                started.set_result(None)

    async def _run_worker(
        self, place: int, died: asyncio.Future[str], started: asyncio.Future[None]
    ) -> tuple[str, bool]:
        """Starts a worker and waits for its end; answers why it ended, and whether a fault of its GPU struck it."""
        number = next(self._numbers)
        partition = self.partitions[place]
        device = partition.device
        await self._mps.well(device)
        try:
            equipped = equip(partition, self._mps.pipe_directory(device))
        except LoadFailed as exc:
            return str(exc), False
        spec = self._planned.spec(place, self._spec) if self._planned else self._spec
        worker = Worker(
            replace(spec, partition=equipped),
            on_done=partial(self._batch_done, number),
            on_death=lambda _, reason: self._dead(number, died, reason),
            before_kill=self._mps.before_kill(device),
        )
        self.workers[number] = worker
        self.places[number] = place
        with self._mps.attached(device, worker) as attachment:
            reason = await self._live(worker, number, died, started)
        return reason, attachment.is_struck

    async def _live(self, worker: Worker, number: int, died: asyncio.Future[str], started: asyncio.Future[None]) -> str:
        try:
            try:
                gives_way = self._gives_way and self.state is VersionState.LOADING
                facts = await worker.start(self._options.load_timeout_s, gives_way=gives_way)
                await self._mps.confirm(worker.spec.partition, facts.pid, facts.obtained)
            except LoadFailed as exc:
                await worker.stop(0)
                return str(exc)
            if died.done():  # while the daemon was asked
                return await died
            self._log_remarks(facts)
            self._enter(number, facts.config)
            if not started.done():
                started.set_result(None)
            return await died
        except asyncio.CancelledError:
            if worker.state is not WorkerState.READY:
                worker.kill()
            raise
        except Exception:
            await worker.stop(0)
            self._gone(number)
            raise
        finally:
            if worker.state is not WorkerState.READY:
                await worker.stop(0)
                self.workers.pop(number, None)
                self.places.pop(number, None)

    def _log_remarks(self, facts: WorkerFacts) -> None:
        for remark in facts.remarks:
            level = logging.WARNING if remark.is_warning else logging.DEBUG
            log.log(level, "model=%s version=%s pid=%d %s", self.name, self.version, facts.pid, remark.text)

    def _enter(self, number: int, config: ModelConfig) -> None:
        if self._router is None:
            self.config = self._overridden(config)
            batching = self.config.dynamic_batching
            self._order = AnswerOrder() if batching is not None and batching.preserve_ordering else None
            if self._planned is not None:
                self._router = self._planned.router(self.config, self._carry_out)
            else:
                self._router = Router(self.config, hold_requests=self._hold_requests if batching is not None else 0)
            self._is_timed = self._router.is_timed
            self._move(VersionState.READY)
        terms = self._planned.terms(self.places[number]) if self._planned else None
        self._carry_out(self._router.worker_ready(number, self._spec.slots, time.monotonic_ns(), terms))

    def _overridden(self, config: ModelConfig) -> ModelConfig:
        config = replace(config, engine=self.engine)
        if self._planned is not None:
            return self._planned.config(config)
        if self._options.queue_delay_us is not None and config.dynamic_batching is not None:
            batching = replace(config.dynamic_batching, max_queue_delay_us=self._options.queue_delay_us)
            config = replace(config, dynamic_batching=batching)
        return config

    def _batch_done(
        self, number: int, _worker: Worker, slot: int, outcomes: list[Outcome], timing: BatchTiming | None
    ) -> None:
        assert self._router is not None
        now_ns = time.monotonic_ns()
        batch, actions = self._router.batch_done(number, slot, now_ns)
        if actions:
            self._carry_out(actions)  # the worker gets its next batch before the answers are written
        if self._planned is not None:
            self._planned.ended(self.places[number], now_ns)
        sent = self._tracer.answer(batch, outcomes)
        if timing is not None:
            self.counters.batch_done(batch, sum([request.rows for request in batch]), timing, now_ns)
            if sent:
                answered = zip(batch, outcomes, sent, strict=True)
                self._tracer.batch_done(self.config, self.version, answered, timing, now_ns)
        else:
            for request in batch:
                self.counters.failed(BACKEND, now_ns - request.arrival_ns)
        self._notice_idle()

    def _dead(self, number: int, died: asyncio.Future[str], reason: str) -> None:
        self._gone(number)
        if not died.done():
            died.set_result(reason)

    def _gone(self, number: int) -> None:
        """The router has a worker less."""
        if self._router is not None:
            now_ns = time.monotonic_ns()
            self._carry_out(self._router.worker_dead(number, now_ns))
            if self._planned is not None:
                self._planned.ended(self.places[number], now_ns)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.workers[action.worker].send(action.slot, action.batch)
            else:
                self._answer_failed(action)
        if self._is_timed:
            self._set_timer()

    def _answer_failed(self, failure: Fail) -> None:
        waited_ns = time.monotonic_ns() - failure.request.arrival_ns
        match failure.error:
            case Cancelled():
                reason = CANCELED
            case WorkerDied():
                reason = BACKEND
            case _:
                reason = REJECTED
        self.counters.failed(reason, waited_ns)
        failure.request.done(failure.error)
        self._notice_idle()

    def _set_timer(self) -> None:
        assert self._router is not None
        now_ns = time.monotonic_ns()
        due_ns = self._router.due_ns(now_ns)
        if due_ns is None or (self._timer and now_ns < self._timer_ns <= due_ns):
            return
        if self._timer:
            self._timer.cancel()
        self._timer_ns = due_ns
        self._timer = asyncio.get_running_loop().call_later(max(0.0, (due_ns - now_ns) / 1e9), self._tick)

    def _tick(self) -> None:
        assert self._router is not None
        self._timer = None
        self._carry_out(self._router.tick(time.monotonic_ns()))

    def _fail(self, reason: str) -> None:
        """The version is unavailable from now on; its other workers end."""
        if self.state is VersionState.UNAVAILABLE:
            return
        self._move(VersionState.UNAVAILABLE)
        self.reason = reason
        log.error("model=%s version=%s is unavailable: %s", self.name, self.version, reason)
        if self._router:
            self._carry_out(self._router.close(Unavailable(f"model '{self.name}' is unavailable: {reason}")))
        self.kill()

    def _move(self, state: VersionState) -> None:
        assert state in _MOVES[self.state], f"{self.state} -> {state}"
        self.state = state
