"""Queues of requests with timeouts of their own: as a search of the whole queue would have it, but without one."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from efserve.batching import BatchQueue
from efserve.inference import InferRequest
from efserve.model_config import DynamicBatching, QueuePolicy
from test_batching import filled, request


class Moment(int):
    """A time that counts how often such times are compared."""

    compared = 0

    def __add__(self, other: int) -> "Moment":
        return Moment(int(self) + other)

    def __eq__(self, other: object) -> bool:
        Moment.compared += 1
        return int(self) == other

    def __lt__(self, other: int) -> bool:
        Moment.compared += 1
        return int(self) < other

    def __le__(self, other: int) -> bool:
        Moment.compared += 1
        return int(self) <= other

    def __gt__(self, other: int) -> bool:
        Moment.compared += 1
        return int(self) > other

    __hash__ = int.__hash__


def test_a_long_queue_is_not_searched_for_each_timeout_that_passes() -> None:
    queue = BatchQueue(4, DynamicBatching(queue_policy=QueuePolicy(allow_timeout_override=True)))
    timeouts_us = [each * 7919 % 10_007 + 1 for each in range(4000)]  # all different, in no order
    filled(queue, [request(at_ns=Moment(0), timeout_us=each) for each in timeouts_us])
    Moment.compared = 0
    for timeout_us in sorted(timeouts_us)[:1000]:
        assert [each.timeout_us for each in queue.expire(timeout_us * 1000)] == [timeout_us]
    assert Moment.compared < 100 * 1000


def test_deadlines_of_requests_that_have_run_do_not_pile_up() -> None:
    queue = BatchQueue(4, DynamicBatching(queue_policy=QueuePolicy(allow_timeout_override=True)))
    for _ in range(1000):
        filled(queue, [request(timeout_us=10**9)])
        queue.take(0)
    filled(queue, [request(timeout_us=2 * 10**9)])
    looks = 0
    while (due_ns := queue.due_ns(0)) is not None and due_ns < 2 * 10**12:
        assert queue.expire(due_ns) == []
        looks += 1
    assert looks <= 1
    assert queue.due_ns(0) == 2 * 10**12


POLICIES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(("REJECT", "DELAY")),
    default_timeout_us=st.integers(0, 6),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.integers(0, 4),
)


def leave(lines: Iterable[list[InferRequest]], gone: list[InferRequest]) -> None:
    for line in lines:
        line[:] = [each for each in line if each not in gone]


STEPS = st.sampled_from(("add", "add", "add", "take", "back", "remove", "expire"))


@given(
    policies=st.tuples(POLICIES, POLICIES),
    steps=st.lists(st.tuples(STEPS, st.integers(1, 2), st.integers(0, 9)), max_size=60),
)
def test_queues_with_timeouts_are_as_lists_that_are_searched_whole(
    policies: tuple[QueuePolicy, QueuePolicy], steps: list[tuple[str, int, int]]
) -> None:
    by_level = dict(enumerate(policies, 1))
    queue = BatchQueue(2, DynamicBatching(priority_levels=2, default_priority_level=1, priority_policies=by_level))
    waiting: dict[int, list[InferRequest]] = {1: [], 2: []}
    delayed: dict[int, list[InferRequest]] = {1: [], 2: []}
    for now_us, (step, level, number) in enumerate(steps):
        now_ns, policy = now_us * 1000, by_level[level]
        everything = [each for n in (1, 2) for each in (*waiting[n], *delayed[n])]
        if step == "add":
            made = request(at_ns=now_ns, timeout_us=number, priority=level)
            is_full = 0 < policy.max_queue_size <= len(waiting[level]) + len(delayed[level])
            assert queue.add(made) is not is_full
            if not is_full:
                waiting[level].append(made)
                own_us = number if policy.allow_timeout_override else 0
                limits_us = [each for each in (own_us, policy.default_timeout_us) if each]
                assert made.deadline_ns == (now_ns + min(limits_us) * 1000 if limits_us else None)
        elif step == "remove":
            gone = everything[number : number + 1]
            assert [queue.remove(each) for each in gone] == [True] * len(gone)
            assert [queue.remove(each) for each in gone] == [False] * len(gone)
            leave((*waiting.values(), *delayed.values()), gone)
        elif step == "expire":
            rejected: list[InferRequest] = []
            for n, line in waiting.items():
                late = [each for each in line if each.deadline_ns is not None and each.deadline_ns <= now_ns]
                leave((line,), late)
                (delayed[n] if by_level[n].timeout_action == "DELAY" else rejected).extend(late)
            assert queue.expire(now_ns) == rejected
        else:
            batch = queue.take(now_ns)
            assert batch == everything[:2]
            leave((*waiting.values(), *delayed.values()), batch)
            if step == "back":  # their worker died
                queue.put_back(batch)
                for each in reversed(batch):
                    waiting[each.priority].insert(0, each)
        assert len(queue) == sum(map(len, (*waiting.values(), *delayed.values())))
        deadlines = [each.deadline_ns for line in waiting.values() for each in line if each.deadline_ns is not None]
        due_ns = queue.due_ns(now_ns)
        assert not deadlines or (due_ns is not None and due_ns <= min(deadlines))
    assert queue.drain() == [each for n in (1, 2) for each in (*waiting[n], *delayed[n])]
