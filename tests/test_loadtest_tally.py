"""Chunks of several processes put together: in order, each record in its window and once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efserve.loadtest.job import Schedule
from efserve.loadtest.recording import Chunk, FailedChunk, Recording
from efserve.loadtest.tally import Tally

BEGIN_NS = 10**12


def chunk(ends_us: list[int], failed_us: list[int] | None = None, model: int = 0, cpu_ns: int = 0) -> Chunk:
    """Records that ended so long after the begin, each sent 50 us and due 80 us before."""
    ends_ns = np.array(sorted(ends_us), np.int64) * 1000 + BEGIN_NS
    failed_ns = np.array(sorted(failed_us or []), np.int64) * 1000 + BEGIN_NS
    return Chunk(
        ends_ns=ends_ns,
        starts_ns=ends_ns - 50_000,
        dues_ns=ends_ns - 80_000,
        models=np.full(len(ends_us), model, np.uint8),
        failures=(FailedChunk("http 503", "no", model, failed_ns),) if failed_us else (),
        clients=None,
        cpu_ns=cpu_ns,
        connections=3,
        waited=1,
        finished=False,
    )


times = st.lists(st.integers(1, 4000), max_size=30)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=4), st.integers(1, 3999))
def test_windows_partition_what_several_processes_recorded(
    processes: list[tuple[list[int], list[int]]], at: int
) -> None:
    """Cuts come a little after the border: what ended in between belongs to the next window."""
    tally = Tally(None)
    tally.begin(BEGIN_NS)
    tally.mark(BEGIN_NS)
    cut = min(at + 100, 4000)
    early = [chunk([end for end in ends if end <= cut], [f for f in failed if f <= cut]) for ends, failed in processes]
    late = [chunk([end for end in ends if end > cut], [f for f in failed if f > cut]) for ends, failed in processes]
    every = sorted(end for ends, _ in processes for end in ends)
    tally.add(early)
    tally.mark(BEGIN_NS + at * 1000)
    first = tally.last_latency_us()
    tally.add(late)
    tally.mark(BEGIN_NS + 4_000_000)
    second = tally.last_latency_us()
    assert len(first) == sum(end <= at for end in every)
    assert len(first) + len(second) == len(every)
    requests = tally.requests()
    assert requests.end_us.tolist() == every
    assert set(requests.latency_us.tolist()) <= {80}
    assert set(requests.delay_us.tolist()) <= {30}
    failed = [f for _, fails in processes for f in fails]
    assert sum(failure.end_us.size for failure in tally.failures()) == len(failed)
    assert tally.marks[-1].ended == len(every) + len(failed)
    assert (tally.connections, tally.waited) == (3 * len(processes), len(processes))


def test_the_warm_up_is_left_out() -> None:
    tally = Tally(Schedule(np.array([0, 500_000, 1_500_000, 2_500_000]), np.zeros(4, np.uint8)))
    tally.begin(BEGIN_NS)
    tally.add([chunk([400, 900], [700], cpu_ns=5)])
    begin = tally.mark(BEGIN_NS + 1_000_000)
    assert (begin.ended, begin.due, begin.cpu_ns) == (3, 2, 5)
    tally.add([chunk([1200], [1300], cpu_ns=9)])
    end = tally.mark(BEGIN_NS + 2_000_000)
    assert (end.ended, end.due, end.cpu_ns) == (5, 3, 9)
    assert tally.requests().end_us.tolist() == [200]
    assert [failed.end_us.tolist() for failed in tally.failures()] == [[300]]


def test_the_true_span_begins_with_the_first_send_and_ends_with_the_last_end() -> None:
    tally = Tally(None)
    tally.begin(BEGIN_NS)
    tally.mark(BEGIN_NS)
    tally.add([chunk([200, 1700], model=0), chunk([2050], [2100], model=1)])
    for border_us in (1000, 2000, 3000):
        tally.mark(BEGIN_NS + border_us * 1000)
    tally.close_span(window_s=0.001)
    assert [(mark.time_ns - BEGIN_NS) / 1000 for mark in tally.marks] == [120, 1000, 2100]  # too short a rest joins
    assert tally.requests().model.tolist() == [0, 0, 1]


def test_clients_of_all_processes() -> None:
    one = Recording(closed=True)
    one.client_means_ns.append(1_500)
    one.client_requests.append(4)
    one.client_errors.append(0)
    tally = Tally(None)
    tally.add([one.cut(1, 0, finished=False), Recording(closed=True).cut(1, 0, finished=False)])
    assert tally.ended_clients == 1
    assert tally.clients().mean_us.tolist() == [2]
    again = one.cut(1, 0, finished=True)
    assert again.clients is None
