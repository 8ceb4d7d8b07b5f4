"""Work that is spread over processes: nothing is lost, nothing twice, no share is empty."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efserve.loadtest.job import ClientsJob, ClosedJob, LoadJob, OpenJob, Schedule, Traffic, Work
from efserve.records import LoadedModel

TRAFFIC = (Traffic(LoadedModel("m", "", 1), (b"x",), None),)
counts = st.integers(1, 40)


def shares(work: Work, parts: int) -> list[Work]:
    return [job.work for job in LoadJob("http://h:1", TRAFFIC, 1.0, work).split(parts)]


@given(counts, st.integers(0, 60), st.integers(1, 12))
def test_a_closed_loop(concurrency: int, request_count: int, parts: int) -> None:
    found = shares(ClosedJob(concurrency, request_count), parts)
    closed = [work for work in found if isinstance(work, ClosedJob)]
    assert 1 <= len(closed) == len(found) <= parts
    assert sum(work.concurrency for work in closed) == concurrency
    assert sum(work.request_count for work in closed) == request_count
    assert all(work.concurrency for work in closed)
    assert not request_count or all(work.request_count for work in closed)


@given(counts, counts, counts, st.integers(1, 12))
def test_short_clients(at_once: int, total: int, each: int, parts: int) -> None:
    found = [work for work in shares(ClientsJob(at_once, total, each), parts) if isinstance(work, ClientsJob)]
    assert sum(work.at_once for work in found) == at_once
    assert sum(work.total for work in found) == total
    assert all(work.at_once and work.total and work.requests_each == each for work in found)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50).map(sorted), counts, st.integers(1, 12))
def test_an_open_loop(dues: list[int], limit: int, parts: int) -> None:
    models = np.arange(len(dues), dtype=np.uint8)
    found = [
        work for work in shares(OpenJob(Schedule(np.array(dues), models), limit), parts) if isinstance(work, OpenJob)
    ]
    assert sum(work.max_connections for work in found) == limit
    assert all(work.max_connections and len(work.schedule.dues_ns) for work in found)
    assert all((np.diff(work.schedule.dues_ns) >= 0).all() for work in found)
    together = [
        (int(due), int(model))
        for work in found
        for due, model in zip(work.schedule.dues_ns, work.schedule.models, strict=True)
    ]
    assert sorted(together) == sorted(zip(dues, models.tolist(), strict=True))
