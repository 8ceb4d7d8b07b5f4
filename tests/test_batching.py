"""The batch queue against the rules of Triton's dynamic batcher."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from efserve.batching import BatchQueue
from efserve.inference import InferRequest, Outcome
from efserve.model_config import DynamicBatching, QueuePolicy


def request(rows: int = 1, at_ns: int = 0, key: object = "k", timeout_us: int = 0, priority: int = 0) -> InferRequest:
    def done(outcome: Outcome) -> None:
        raise AssertionError(f"a queue answers nobody: {outcome}")

    return InferRequest((b"",), ((rows,),), rows, key, done, timeout_us=timeout_us, arrival_ns=at_ns, priority=priority)


def filled(queue: BatchQueue, requests: Iterable[InferRequest]) -> BatchQueue:
    for each in requests:
        assert queue.add(each)
    return queue


def rows_of(batch: list[InferRequest]) -> list[int]:
    return [each.rows for each in batch]


def test_without_dynamic_batching_each_request_runs_alone() -> None:
    queue = filled(BatchQueue(8, None), [request(), request()])
    assert rows_of(queue.take(0)) == [1]
    assert rows_of(queue.take(0)) == [1]
    assert queue.take(0) == []


def test_without_delay_all_that_waits_runs_up_to_the_maximum() -> None:
    queue = filled(BatchQueue(4, DynamicBatching()), [request() for _ in range(6)])
    assert rows_of(queue.take(0)) == [1, 1, 1, 1]
    assert rows_of(queue.take(0)) == [1, 1]


def test_a_batch_never_exceeds_the_maximum() -> None:
    queue = filled(BatchQueue(4, DynamicBatching()), [request(3), request(2), request(2)])
    assert rows_of(queue.take(0)) == [3]
    assert rows_of(queue.take(0)) == [2, 2]


def test_other_shapes_end_a_batch() -> None:
    queue = filled(BatchQueue(8, DynamicBatching()), [request(key="a"), request(key="b"), request(key="b")])
    assert [r.shape_key for r in queue.take(0)] == ["a"]
    assert [r.shape_key for r in queue.take(0)] == ["b", "b"]


def test_a_preferred_size_runs_at_once_though_more_waits() -> None:
    queue = filled(BatchQueue(8, DynamicBatching((4,), max_queue_delay_us=100)), [request() for _ in range(6)])
    assert len(queue.take(0)) == 4
    assert queue.take(0) == []  # two wait for two more
    assert queue.due_ns(0) == 100_000
    assert len(queue.take(100_000)) == 2


def test_the_largest_preferred_prefix_wins() -> None:
    queue = filled(BatchQueue(8, DynamicBatching((2, 4), max_queue_delay_us=100)), [request() for _ in range(5)])
    assert len(queue.take(0)) == 4


def test_what_can_reach_no_preferred_size_any_more_runs_at_once() -> None:
    queue = filled(BatchQueue(8, DynamicBatching((2, 6), max_queue_delay_us=100)), [request(3)])
    assert queue.take(0) == []
    filled(queue, [request(4)])  # 7 rows: below the maximum, beyond the largest preferred size
    assert rows_of(queue.take(0)) == [3]
    assert queue.take(0) == []  # 4 rows wait for 2 more
    assert rows_of(queue.take(100_000)) == [4]


def test_there_may_be_as_many_levels_as_numbers() -> None:
    batching = DynamicBatching(priority_levels=2**64 - 1, default_priority_level=2**32)
    queue = BatchQueue(1, batching)
    for priority in (2**64 - 1, 0, 7, *range(1000, 2000)):
        assert queue.add(request(priority=priority))
    assert [queue.take(0)[0].priority for _ in range(3)] == [7, 1000, 1001]
    assert len(queue) == 1000
    assert [each.priority for each in queue.drain()[-2:]] == [0, 2**64 - 1]  # 0 waits at the default level


def test_a_request_that_was_delayed_runs_when_the_delay_ends_though_nothing_comes() -> None:
    policy = QueuePolicy(default_timeout_us=10, timeout_action="DELAY")
    batching = DynamicBatching((4, 8), max_queue_delay_us=100, queue_policy=policy)
    queue = filled(BatchQueue(32, batching), [request()])
    assert queue.expire(20_000) == []
    filled(queue, [request(2, at_ns=30_000), request(2, at_ns=30_000)])
    assert rows_of(queue.take(30_000)) == [2, 2]
    assert queue.expire(40_000) == []
    assert queue.due_ns(40_000) == 100_000
    assert rows_of(queue.take(100_000)) == [1]


def test_after_the_delay_everything_pending_runs() -> None:
    queue = filled(BatchQueue(8, DynamicBatching((4,), max_queue_delay_us=100)), [request() for _ in range(6)])
    assert len(queue.take(100_000)) == 6


def test_with_delay_a_lone_request_waits_for_company() -> None:
    queue = filled(BatchQueue(8, DynamicBatching(max_queue_delay_us=100)), [request(at_ns=5)])
    assert queue.take(6) == []
    assert queue.due_ns(6) == 100_005
    assert len(queue.take(100_005)) == 1
    assert queue.due_ns(100_005) is None


def test_a_batch_that_cannot_grow_does_not_wait() -> None:
    batching = DynamicBatching(max_queue_delay_us=100)
    assert rows_of(filled(BatchQueue(4, batching), [request(3), request(2)]).take(0)) == [3]
    assert rows_of(filled(BatchQueue(4, batching), [request(key="a"), request(key="b")]).take(0)) == [1]


def test_a_full_queue_refuses() -> None:
    queue = BatchQueue(4, DynamicBatching(queue_policy=QueuePolicy(max_queue_size=2)))
    assert [queue.add(request()) for _ in range(3)] == [True, True, False]


def test_rejected_after_the_timeout() -> None:
    policy = QueuePolicy(default_timeout_us=10)
    queue = filled(BatchQueue(4, DynamicBatching(queue_policy=policy)), [request(at_ns=0), request(at_ns=5_000)])
    assert queue.due_ns(0) == 10_000
    assert queue.expire(9_999) == []
    assert [r.arrival_ns for r in queue.expire(10_000)] == [0]
    assert queue.due_ns(10_000) == 15_000
    assert [r.arrival_ns for r in queue.take(10_000)] == [5_000]


def test_delayed_after_the_timeout_runs_behind_all_others() -> None:
    policy = QueuePolicy(default_timeout_us=10, timeout_action="DELAY")
    queue = filled(BatchQueue(1, DynamicBatching(queue_policy=policy)), [request(at_ns=0), request(at_ns=9_000)])
    assert queue.expire(10_000) == []
    assert [queue.take(10_000)[0].arrival_ns for _ in range(2)] == [9_000, 0]


def test_a_request_may_shorten_its_timeout_only_where_allowed() -> None:
    for allowed, expected in ((True, 3_000), (False, 10_000)):
        policy = QueuePolicy(default_timeout_us=10, allow_timeout_override=allowed)
        queue = BatchQueue(4, DynamicBatching(queue_policy=policy))
        queue.add(request(timeout_us=3))
        queue.add(request(timeout_us=99))
        assert queue.due_ns(0) == expected


def test_put_back_goes_first_and_in_order() -> None:
    queue = filled(BatchQueue(8, None), [request(1)])
    queue.put_back([request(2), request(3)])
    assert [queue.take(0)[0].rows for _ in range(3)] == [2, 3, 1]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.sampled_from("ab")), max_size=40),
    preferred=st.sets(st.integers(1, 8), max_size=3),
    delay_us=st.sampled_from([0, 100]),
    times=st.lists(st.integers(0, 300_000), min_size=1, max_size=60).map(sorted),
)
def test_every_request_runs_once_in_order_and_in_legal_batches(
    sizes: list[tuple[int, str]], preferred: set[int], delay_us: int, times: list[int]
) -> None:
    queue = BatchQueue(8, DynamicBatching(tuple(sorted(preferred)), max_queue_delay_us=delay_us))
    waiting = [request(rows, key=key) for rows, key in sizes]
    filled(queue, waiting)
    ran: list[InferRequest] = []
    for now_ns in [*times, 400_000]:
        while batch := queue.take(now_ns):
            assert sum(rows_of(batch)) <= 8
            assert len({r.shape_key for r in batch}) == 1
            ran.extend(batch)
    assert ran == waiting
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from(("add", "take", "remove", "back", "expire", "drain")), st.integers(1, 8))))
def test_rows_are_those_of_what_waits(steps: list[tuple[str, int]]) -> None:
    queue = BatchQueue(8, DynamicBatching(queue_policy=QueuePolicy(default_timeout_us=3)))
    waiting: list[InferRequest] = []
    for now_us, (step, size) in enumerate(steps):
        now_ns, left = now_us * 1000, list[InferRequest]()
        if step == "add":
            waiting.append(request(size, at_ns=now_ns))
            filled(queue, waiting[-1:])
        elif step == "back":
            waiting.append(request(size, at_ns=now_ns))
            queue.put_back(waiting[-1:])
        elif step == "remove":
            left = [each for each in waiting[:1] if queue.remove(each)]
        elif step == "take":
            left = queue.take(now_ns, size)
        else:
            left = queue.expire(now_ns) if step == "expire" else queue.drain()
        waiting = [each for each in waiting if each not in left]
        assert (len(queue), queue.rows) == (len(waiting), sum(rows_of(waiting)))


@given(
    st.lists(st.tuples(st.sampled_from(("add", "add", "take", "back", "expire")), st.integers(0, 6)), max_size=40),
    st.integers(0, 5),
    st.booleans(),
)
def test_exactly_those_whose_deadline_has_passed_expire(
    steps: list[tuple[str, int]], default_us: int, allowed: bool
) -> None:
    policy = QueuePolicy(default_timeout_us=default_us, allow_timeout_override=allowed)
    queue = BatchQueue(4, DynamicBatching(queue_policy=policy))
    waiting: list[InferRequest] = []
    for now_us, (step, number) in enumerate(steps):
        now_ns = now_us * 1000
        if step == "add":
            waiting.append(request(at_ns=now_ns, timeout_us=number))
            filled(queue, waiting[-1:])
        elif step == "back":
            waiting.insert(0, request(at_ns=now_ns))
            queue.put_back(waiting[:1])
        else:
            expired = [each for each in waiting if each.deadline_ns is not None and each.deadline_ns <= now_ns]
            assert queue.expire(now_ns) == expired
            waiting = [each for each in waiting if each not in expired]
            deadlines = [each.deadline_ns for each in waiting if each.deadline_ns is not None]
            if expired:
                assert queue.due_ns(now_ns) == min(deadlines, default=None)
            if step == "take":
                batch = queue.take(now_ns)
                assert batch == waiting[: len(batch)]
                waiting = waiting[len(batch) :]


LEVELS = DynamicBatching(
    priority_levels=3,
    default_priority_level=2,
    priority_policies={1: QueuePolicy(max_queue_size=1), 3: QueuePolicy(default_timeout_us=1, timeout_action="DELAY")},
)


def with_priority(priority: int, name: str = "k", at_ns: int = 0) -> InferRequest:
    made = request(at_ns=at_ns)
    made.priority = priority
    made.tensors = (name.encode(),)
    return made


def names_of(batch: list[InferRequest]) -> list[bytes]:
    return [bytes(each.tensors[0]) for each in batch]


def test_high_priorities_run_first_and_unknown_ones_by_the_default() -> None:
    order = [(3, "low"), (2, "mid"), (0, "default"), (9, "beyond"), (1, "high")]
    queue = filled(BatchQueue(8, LEVELS), [with_priority(priority, name) for priority, name in order])
    assert names_of(queue.take(0)) == [b"high", b"mid", b"default", b"beyond", b"low"]
    assert len(queue) == 0


def test_each_level_has_its_own_limit() -> None:
    queue = filled(BatchQueue(8, LEVELS), [with_priority(1), with_priority(2)])
    assert not queue.add(with_priority(1))
    assert queue.add(with_priority(2))
    assert len(queue) == 3


def test_each_level_has_its_own_timeout() -> None:
    queue = filled(BatchQueue(1, LEVELS), [with_priority(3, "a"), with_priority(3, "b", at_ns=5000)])
    assert queue.due_ns(0) == 1000
    assert queue.expire(1000) == []
    filled(queue, [with_priority(3, "c", at_ns=1500)])
    assert [names_of(queue.take(2000)) for _ in range(3)] == [[b"b"], [b"c"], [b"a"]]


def test_a_low_request_that_has_waited_long_sends_the_batch_that_holds_it() -> None:
    waiting = DynamicBatching(max_queue_delay_us=100, priority_levels=2, default_priority_level=2)
    queue = filled(BatchQueue(8, waiting), [with_priority(2, "old"), with_priority(1, "new", at_ns=90_000)])
    assert queue.take(90_000) == []
    assert queue.due_ns(90_000) == 100_000
    assert names_of(queue.take(100_000)) == [b"new", b"old"]
    assert queue.due_ns(100_000) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 8)), max_size=30))
def test_nothing_is_lost_between_the_levels(asked: list[tuple[int, int]]) -> None:
    queue = BatchQueue(8, DynamicBatching(priority_levels=3, default_priority_level=2))
    made = []
    for priority, rows in asked:
        each = request(rows)
        each.priority = priority
        made.append(each)
        assert queue.add(each)
    taken = []
    while batch := queue.take(0):
        assert sum(rows_of(batch)) <= 8
        taken.extend(batch)
    assert sorted(map(id, taken)) == sorted(map(id, made))
    assert len(queue) == 0
