"""The router: every request leaves exactly once, whatever workers do."""

from collections.abc import Sequence
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from efserve.errors import Cancelled, Unavailable
from efserve.inference import InferRequest, Outcome
from efserve.model_config import DynamicBatching, ModelConfig, QueuePolicy
from efserve.routing import AHEAD_NS, Action, AnswerOrder, Fail, RestartPolicy, Router, Send


def ignore(_: Outcome) -> None:
    """A request of which nobody waits for the answer."""


def request(rows: int = 1, at_ns: int = 0) -> InferRequest:
    return InferRequest((b"",), ((rows,),), rows, "k", ignore, arrival_ns=at_ns)


def router(max_batch: int = 4, **policy: int) -> Router:
    batching = DynamicBatching(queue_policy=QueuePolicy(**policy))  # type: ignore[arg-type]  # the tests pass integers
    return Router(ModelConfig("m", max_batch_size=max_batch, dynamic_batching=batching))


def sends(actions: Sequence[Action]) -> list[tuple[int, int, int]]:
    return [(a.worker, a.slot, len(a.batch)) for a in actions if isinstance(a, Send)]


def test_requests_wait_for_a_worker_and_then_share_a_batch() -> None:
    r = router()
    assert [r.add(request()) for _ in range(3)] == [[], [], []]
    assert sends(r.worker_ready(7, 2, 0)) == [(7, 1, 3)]


def test_the_worker_with_most_free_slots_gets_the_batch() -> None:
    r = router(1)
    r.worker_ready(1, 2, 0)
    r.worker_ready(2, 2, 0)
    assert [sends(r.add(request()))[0][0] for _ in range(4)] == [1, 2, 1, 2]
    assert sends(r.add(request())) == []
    batch, actions = r.batch_done(2, 0, 0)
    assert len(batch) == 1
    assert sends(actions) == [(2, 0, 1)]


def test_a_batch_that_can_grow_leaves_the_queue_when_a_slow_worker_is_free() -> None:
    r = router(4)
    r.worker_ready(1, 2, 0)
    assert sends(r.add(request())) == [(1, 1, 1)]
    assert [list(r.add(request(at_ns=n))) for n in (1, 2, 3)] == [[], [], []]
    assert sends(r.add(request(at_ns=4))) == [(1, 0, 4)]  # it cannot grow any more
    assert list(r.add(request(at_ns=5))) == []
    assert sends(r.batch_done(1, 1, 100 * AHEAD_NS)[1]) == []  # the next one runs already
    assert sends(r.batch_done(1, 0, 200 * AHEAD_NS)[1]) == [(1, 0, 1)]


def test_a_delay_that_ends_while_nobody_looks_is_due_at_once() -> None:
    batching = DynamicBatching(max_queue_delay_us=100)
    r = Router(ModelConfig("m", max_batch_size=4, dynamic_batching=batching))
    r.worker_ready(1, 2, 0)
    assert list(r.add(request())) == []
    assert r.due_ns(99_000) == 100_000
    assert r.due_ns(150_000) == 150_000
    assert sends(r.tick(150_000)) == [(1, 1, 1)]
    assert list(r.add(request(at_ns=150_000))) == []
    assert r.due_ns(300_000) is None  # it waits for the worker


def test_a_quick_worker_gets_its_next_batch_ahead() -> None:
    r = router(4)
    r.worker_ready(1, 2, 0)
    assert len(sends(r.add(request()))) == 1
    r.batch_done(1, 1, AHEAD_NS - 1)
    assert [len(sends(r.add(request(at_ns=AHEAD_NS)))) for _ in range(3)] == [1, 1, 0]


def test_what_a_worker_was_given_ahead_has_not_begun() -> None:
    r = Router(ModelConfig("m"))
    r.worker_ready(1, 2, 0)
    r.worker_ready(2, 1, 0)
    for _ in range(5):
        r.add(request())
    assert (r.pending, r.not_begun, r.in_flight) == (2, 3, 3)
    r.batch_done(1, 1, 1)
    assert (r.pending, r.not_begun) == (1, 2)  # what was given ahead runs, the next has taken its place


@pytest.mark.parametrize(
    "policy", [{"max_queue_size": 1}, {"default_timeout_us": 100}, {"allow_timeout_override": True}]
)
def test_nothing_leaves_a_limited_queue_before_a_worker_is_free(policy: dict[str, int]) -> None:
    r = router(1, **policy)
    r.worker_ready(1, 2, 0)
    assert sends(r.add(request())) == [(1, 0, 1)]
    assert list(r.add(request())) == []
    assert r.pending == 1


def test_nothing_overtakes_priorities() -> None:
    batching = DynamicBatching(priority_levels=2, default_priority_level=2)
    r = Router(ModelConfig("m", max_batch_size=1, dynamic_batching=batching))
    r.worker_ready(1, 2, 0)
    assert len(sends(r.add(request()))) == 1
    assert list(r.add(request())) == []


def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    r = router(max_queue_size=2)
    waiting, other = request(), request()
    assert [list(r.add(each)) for each in (waiting, other)] == [[], []]
    (action,) = r.cancel(waiting)
    assert isinstance(action, Fail)
    assert isinstance(action.error, Cancelled)
    assert r.pending == 1
    assert list(r.add(request())) == []  # there is room again
    assert sends(r.worker_ready(1, 1, 0)) == [(1, 0, 2)]
    assert list(r.cancel(other)) == []  # it runs


def test_nothing_runs_before_enough_wait() -> None:
    held = Router(ModelConfig("m", max_batch_size=8, dynamic_batching=DynamicBatching()), hold_requests=3)
    held.worker_ready(1, 2, 0)
    assert [sends(held.add(request())) for _ in range(4)] == [[], [], [(1, 1, 3)], []]


def test_answers_leave_in_the_order_of_their_requests() -> None:
    order, left = AnswerOrder(), list[int]()

    def made(number: int) -> InferRequest:
        return InferRequest((b"",), ((1,),), 1, "k", lambda _: left.append(number))

    requests = [made(number) for number in range(4)]
    for each in requests:
        order.admit(each)
    requests[1].done(())
    requests[2].done(Unavailable("late"))
    assert left == [2]
    requests[0].done(())
    assert left == [2, 0, 1]
    requests[3].done(())
    assert left == [2, 0, 1, 3]


def test_a_full_queue_answers_at_once() -> None:
    r = router(max_queue_size=1)
    r.add(request())
    (action,) = r.add(request())
    assert isinstance(action, Fail)
    assert str(action.error) == "Exceeds maximum queue size"
    assert isinstance(action.error, Unavailable)


def test_a_late_request_is_rejected_when_time_has_passed() -> None:
    r = router(default_timeout_us=5)
    r.add(request())
    assert r.due_ns(0) == 5_000
    (action,) = r.tick(5_000)
    assert isinstance(action, Fail)
    assert str(action.error) == "Request timeout expired"


def test_cancelled_requests_do_not_run() -> None:
    r = router()
    gone, wanted = request(), request()
    for each in (gone, wanted):
        r.add(each)
    gone.cancelled = True
    failed, sent = r.worker_ready(1, 2, 0)
    assert isinstance(failed, Fail)
    assert failed.request is gone
    assert isinstance(failed.error, Cancelled)
    assert isinstance(sent, Send)
    assert sent.batch == [wanted]


def test_after_a_death_requests_run_once_more_and_alone() -> None:
    r = router()
    for _ in range(2):
        r.add(request())
    r.worker_ready(1, 2, 0)
    assert r.worker_dead(1, 0) == ()
    assert [len(a.batch) for a in r.worker_ready(2, 2, 0) if isinstance(a, Send)] == [1]
    (failed,) = r.worker_dead(2, 0)
    assert isinstance(failed, Fail)
    assert "died twice" in str(failed.error)
    assert r.pending == 1  # the other one had not begun


def test_batches_that_had_not_begun_go_back_as_often_as_it_takes() -> None:
    r = router(max_batch=1)
    for number in range(4):
        r.worker_ready(number, 2, 0)
        if number == 0:
            first, second = request(), request()
            r.add(first)
            r.add(second)
        assert [a.request for a in r.worker_dead(number, 0) if isinstance(a, Fail)] == [[], [first], [], [second]][
            number
        ]


def test_a_closed_router_refuses_and_fails_what_a_dead_worker_held() -> None:
    r = router()
    r.worker_ready(1, 1, 0)
    running, queued, late = request(), request(), request()
    r.add(running)
    r.add(queued)
    error = Unavailable("gone")
    assert r.close(error) == (Fail(queued, error),)
    assert r.add(late) == (Fail(late, error),)
    assert r.worker_dead(1, 0) == (Fail(running, error),)


def test_restarts_are_ever_later_and_end_after_too_many_deaths() -> None:
    policy = RestartPolicy()
    assert [policy.died(t) for t in (0.0, 1.0, 2.0, 3.0, 4.0)] == [0.1, 0.2, 0.4, 0.8, None]


def test_deaths_long_ago_are_forgotten() -> None:
    policy = RestartPolicy()
    assert [policy.died(100.0 * n) for n in range(10)] == [0.1] * 10


class RouterLife(RuleBasedStateMachine):
    """Random lives of workers and requests: each request is held by one worker, waits, or has left once."""

    policy: ClassVar[dict[str, int]] = {"max_queue_size": 6, "default_timeout_us": 50}
    slots = 1  # of each worker, that the router uses

    def __init__(self) -> None:
        super().__init__()
        self.router = router(**self.policy)
        self.now_ns = 0
        self.numbers = 0
        self.held: dict[tuple[int, int], list[InferRequest]] = {}
        self.workers: set[int] = set()
        self.waiting: set[int] = set()
        self.left: set[int] = set()

    def carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Fail):
                self.leave(action.request)
                continue
            assert (action.worker, action.slot) not in self.held
            assert sum(r.rows for r in action.batch) <= 4
            self.held[action.worker, action.slot] = action.batch
            for each in action.batch:
                self.waiting.remove(id(each))

    def leave(self, gone: InferRequest) -> None:
        assert id(gone) not in self.left
        self.waiting.discard(id(gone))
        self.left.add(id(gone))

    @rule(rows=st.integers(1, 4))
    def arrive(self, rows: int) -> None:
        each = request(rows, self.now_ns)
        self.keep = [*getattr(self, "keep", []), each]  # ids stay unique
        self.waiting.add(id(each))
        self.carry_out(self.router.add(each))

    @rule()
    def ready(self) -> None:
        if len(self.workers) < 3:
            self.numbers += 1
            self.workers.add(self.numbers)
            self.carry_out(self.router.worker_ready(self.numbers, 2, self.now_ns))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.held)))
        expected = self.held.pop(place)
        batch, actions = self.router.batch_done(*place, self.now_ns)
        assert batch == expected
        for each in batch:
            self.leave(each)
        self.carry_out(actions)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers.remove(worker)
        for place in [p for p in self.held if p[0] == worker]:
            self.waiting.update(id(each) for each in self.held.pop(place))
        self.carry_out(self.router.worker_dead(worker, self.now_ns))

    @rule(ns=st.integers(1, 100_000))
    def pass_time(self, ns: int) -> None:
        self.now_ns += ns
        self.carry_out(self.router.tick(self.now_ns))

    @invariant()
    def counts_agree(self) -> None:
        assert self.router.in_flight == sum(len(batch) for batch in self.held.values())
        assert self.router.pending == len(self.waiting)

    @invariant()
    def nothing_waits_while_a_worker_is_free(self) -> None:
        busy = {worker for worker, _ in self.held}
        assert not self.waiting or busy == self.workers
        assert len(self.held) <= self.slots * len(self.workers)


class UnlimitedRouterLife(RouterLife):
    """The same, with a queue that batches may leave ahead of their time."""

    policy: ClassVar[dict[str, int]] = {}
    slots = 2


TestRouterLife = RouterLife.TestCase
TestRouterLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestUnlimitedRouterLife = UnlimitedRouterLife.TestCase
TestUnlimitedRouterLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
