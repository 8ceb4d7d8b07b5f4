"""When latency grows for as long as an open loop lasts: told of queues by theory, and not of steady ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.loadtest.overload import Flow, overload


def queue(rate: float, capacity: float, windows: int, *, start_s: float = 0.5, cores: float = 0.1) -> list[Flow]:
    """Windows of 1 s of a server that answers so many per second, one after the other, from an empty queue on."""
    flows = []
    for index in range(windows):
        end_s = start_s + index + 1
        due, ended = round(rate), round(min(rate, capacity))
        backlog = round(max(0.0, rate - capacity) * end_s) + 1
        latency_s = 1 / capacity + max(0.0, 1 - capacity / rate) * (end_s - 0.5)
        flows.append(Flow(1.0, due, ended, backlog, latency_s * 1e6, cores))
    return flows


@given(st.floats(100, 10_000), st.floats(1.1, 20), st.integers(3, 60))
def test_twice_and_more_of_the_capacity_is_told(capacity: float, factor: float, windows: int) -> None:
    assert "the server does not keep up with" in overload(queue(factor * capacity, capacity, windows))


@given(st.floats(100, 10_000), st.floats(0.1, 0.99), st.integers(1, 60))
def test_what_the_server_answers_is_not(capacity: float, factor: float, windows: int) -> None:
    assert overload(queue(factor * capacity, capacity, windows)) == ""


def test_the_reason_names_both_rates() -> None:
    assert overload(queue(400, 200, 5)) == ("latency grows: the server does not keep up with 400/s (it answers 200/s)")


def test_slow_growth_takes_more_windows() -> None:
    flows = queue(1010, 1000, 5)
    assert overload(flows[:4]) == ""
    assert "1010/s" in overload(flows)


def test_a_client_without_cpu_is_not_the_servers_fault() -> None:
    reason = overload(queue(400, 200, 5, cores=0.97))
    assert reason == (
        "latency grows: this client does not keep up with 400/s (it handles 200/s, and uses 0.97 of a core per "
        "process); try more --processes"
    )


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_too_few_windows_say_nothing(windows: int) -> None:
    assert overload(queue(400, 200, windows)) == ""


def test_no_answer_at_all_is_worse_than_any_latency() -> None:
    flows = [Flow(1.0, 100, 0, 100 * (index + 1), math.nan, 0.1) for index in range(3)]
    assert "(it answers 0/s)" in overload(flows)


def test_a_queue_that_has_filled_up_is_steady() -> None:
    """A long service time: the backlog rises until the first answers, and then no more."""
    flows = [
        Flow(1.0, 100, ended, backlog, latency, 0.1)
        for ended, backlog, latency in (
            (0, 100, math.nan),
            (0, 200, math.nan),
            (100, 200, 2e6),
            (100, 200, 2e6),
            (100, 200, 2e6),
        )
    ]
    assert overload(flows) == ""
