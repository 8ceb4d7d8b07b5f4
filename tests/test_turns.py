"""Workers of a plan: batches of their own size, turns on shared partitions, and requests that are late for certain."""

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.errors import Unavailable
from efserve.inference import InferRequest, Outcome
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.routing import Action, Fail, Router, Send, pass_on
from efserve.turns import Terms, Turns

MS = 1_000_000


def ignore(_: Outcome) -> None:
    """A request of which nobody waits for the answer."""


def request(at_ms: float, rows: int = 1) -> InferRequest:
    return InferRequest((b"",), ((rows,),), rows, "k", ignore, arrival_ns=int(at_ms * MS))


def router(name: str = "m", slo_ms: int = 0) -> Router:
    config = ModelConfig(name, max_batch_size=8, dynamic_batching=DynamicBatching())
    return Router(config, slo_ns=slo_ms * MS)


def terms(rows: int, batch_ms: float, turns: Turns | None = None) -> Terms:
    return Terms(rows, rows / batch_ms * 1000, int(batch_ms * MS), int(batch_ms * MS), turns)


def sends(actions: Sequence[Action]) -> list[tuple[int, int]]:
    return [(a.worker, len(a.batch)) for a in actions if isinstance(a, Send)]


def fails(actions: Sequence[Action]) -> list[InferRequest]:
    for action in actions:
        assert isinstance(action, Send) or isinstance(action.error, Unavailable)
    return [a.request for a in actions if isinstance(a, Fail)]


def test_each_worker_has_batches_of_its_own_size() -> None:
    r = router()
    for _ in range(12):
        r.add(request(0))
    assert sends(r.worker_ready(1, 2, 0, terms(2, 10))) == [(1, 2)]  # one at a time, whatever slots it has
    assert sends(r.worker_ready(2, 2, 0, terms(8, 10))) == [(2, 8)]
    assert r.pending == 2


def test_requests_are_spread_by_what_workers_carry() -> None:
    r = router()
    r.worker_ready(1, 1, 0, terms(1, 30))
    r.worker_ready(2, 1, 0, terms(1, 10))
    given = {1: 0, 2: 0}
    for at in range(400):
        ((worker, _),) = sends(r.add(request(100 * at)))
        given[worker] += 1
        r.batch_done(worker, 0, 0)
    assert 95 <= given[1] <= 105


def test_models_of_one_partition_take_turns() -> None:
    turns = Turns()
    a, b = router("a"), router("b")
    a.worker_ready(1, 1, 0, terms(2, 10, turns))
    b.worker_ready(2, 1, 0, terms(4, 10, turns))
    assert sends(a.add(request(0))) == [(1, 1)]
    assert [sends(a.add(request(1))) for _ in range(3)] == [[], [], []]
    assert [sends(b.add(request(2))) for _ in range(2)] == [[], []]
    assert len(a.batch_done(1, 0, 10 * MS)[0]) == 1
    ((who, actions),) = pass_on(turns, 10 * MS)
    assert (who, sends(actions)) == (b, [(2, 2)])  # though `a` has waited longer
    b.batch_done(2, 0, 20 * MS)
    ((who, actions),) = pass_on(turns, 20 * MS)
    assert (who, sends(actions)) == (a, [(1, 2)])
    a.batch_done(1, 0, 30 * MS)
    ((who, actions),) = pass_on(turns, 30 * MS)
    assert (who, sends(actions)) == (a, [(1, 1)])  # nobody else has anything to run


def test_a_worker_that_dies_gives_its_turn_back() -> None:
    turns = Turns()
    a, b = router("a"), router("b")
    a.worker_ready(1, 1, 0, terms(1, 10, turns))
    b.worker_ready(2, 1, 0, terms(1, 10, turns))
    a.add(request(0))
    assert sends(b.add(request(1))) == []
    a.worker_dead(1, 2 * MS)
    ((who, _),) = pass_on(turns, 2 * MS)
    assert who is b
    assert sends(a.worker_ready(3, 1, 3 * MS, terms(1, 10, turns))) == []
    b.batch_done(2, 0, 11 * MS)
    ((who, actions),) = pass_on(turns, 11 * MS)
    assert (who, sends(actions)) == (a, [(3, 1)])


def test_what_cannot_be_in_time_is_refused_at_once_and_the_rest_keep_their_time() -> None:
    r = router(slo_ms=20)
    r.worker_ready(1, 1, 0, terms(2, 10))
    assert [len(fails(r.add(request(0)))) for _ in range(5)] == [0, 0, 0, 1, 1]  # one runs, then a batch of two
    assert r.pending == 2
    assert sends(r.batch_done(1, 0, 10 * MS)[1]) == [(1, 2)]
    assert not fails(r.add(request(10)))


def test_what_became_late_while_it_waited_leaves_before_the_next_batch() -> None:
    r = router(slo_ms=20)
    r.worker_ready(1, 1, 0, terms(2, 10))
    early, later = request(1), request(6)
    for each in (request(0), early, later):
        assert not fails(r.add(each))
    actions = r.batch_done(1, 0, 14 * MS)[1]  # it took 4 ms longer than planned
    assert fails(actions) == [early]
    assert sends(actions) == [(1, 1)]


def test_without_an_slo_nothing_is_refused() -> None:
    r = router()
    r.worker_ready(1, 1, 0, terms(2, 10))
    assert not any(fails(r.add(request(0))) for _ in range(50))


def test_the_slow_worker_does_not_take_what_only_the_fast_one_can_do_in_time() -> None:
    r = router(slo_ms=60)
    r.worker_ready(1, 1, 0, terms(1, 10))
    r.worker_ready(2, 1, 0, terms(1, 30))
    assert sends(r.add(request(0))) == [(1, 1)]
    assert sends(r.add(request(0))) == [(2, 1)]
    waiting = request(0)
    assert not fails(r.add(waiting))
    assert not r.batch_done(2, 0, 35 * MS)[1]  # 25 ms are left: the fast worker, overdue, may still do it
    assert sends(r.batch_done(1, 0, 36 * MS)[1]) == [(1, 1)]


class Site:
    """Three models on a shared partition, two of them with a worker more; checks what the routers do."""

    def __init__(self, slo_ms: int) -> None:
        self.turns = Turns()
        self.routers = [router(name, slo_ms) for name in "abc"]
        for number, each in enumerate(self.routers):
            each.worker_ready(number, 1, 0, terms(2, 10, self.turns))
        for number in (0, 1):
            self.routers[number].worker_ready(10 + number, 1, 0, terms(4, 10))
        self.running: dict[int, int] = {}  # worker -> model
        self.left = 0

    def follow(self, model: int, actions: Sequence[Action]) -> None:
        self.left += len(fails(actions))
        for worker, _ in sends(actions):
            assert worker not in self.running
            self.running[worker] = model
        assert sum(worker < 10 for worker in self.running) <= 1

    def end(self, worker: int, now_ms: int) -> None:
        model = self.running.pop(worker)
        batch, actions = self.routers[model].batch_done(worker, 0, now_ms * MS)
        self.left += len(batch)
        self.follow(model, actions)
        if worker < 10:
            for who, more in pass_on(self.turns, now_ms * MS):
                self.follow(self.routers.index(who), more)


EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 8)), max_size=60)


@settings(deadline=None)
@given(EVENTS, st.sampled_from((0, 25)), st.randoms(use_true_random=False))
def test_every_request_leaves_once_and_partitions_run_one_batch(
    events: list[tuple[int, int, int]], slo_ms: int, chance: random.Random
) -> None:
    site, now_ms = Site(slo_ms), 0
    for model, rows, wait_ms in events:
        now_ms += wait_ms
        site.follow(model, site.routers[model].add(request(now_ms, rows)))
        if site.running and chance.random() < 0.4:
            site.end(chance.choice(sorted(site.running)), now_ms)
    while site.running:
        now_ms += 10
        site.end(chance.choice(sorted(site.running)), now_ms)
    assert site.left == len(events)
    assert all(each.pending == each.in_flight == 0 for each in site.routers)
