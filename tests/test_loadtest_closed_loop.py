"""The closed loop over a real connection to a real small server: counts and consistency, no speeds."""

import asyncio
import socket
from collections.abc import Callable

import numpy as np
import uvloop

from efserve.client.answers import HeadCache
from efserve.client.connection import CLOSED, CONNECT, TIMEOUT, WRONG_SIZE
from efserve.client.endpoint import Endpoint
from efserve.client.http import HttpConnection, prepare
from efserve.client.infer import infer_body
from efserve.loadtest.closed_loop import ClosedLoop
from efserve.tensors import TensorSpec
from v2_server import Behaviour, running


def requests(endpoint: Endpoint, count: int = 1) -> list[bytes]:
    spec = TensorSpec("input", "FP32", (-1, 16))
    bodies = [infer_body([spec], [np.full((1, 16), value, np.float32)], binary=True) for value in range(count)]
    return [prepare(endpoint, "POST", "/v2/models/echo/infer", body.data, body.headers) for body in bodies]


async def drive(
    behaviour: Behaviour, concurrency: int, until: Callable[[ClosedLoop], bool], timeout_s: float = 10.0
) -> ClosedLoop:
    """Run the loop until the condition holds, and stop it."""
    async with running(behaviour) as url:
        endpoint, heads = Endpoint(url), HeadCache()
        load = ClosedLoop(
            lambda listener: HttpConnection(endpoint, listener, heads),
            requests(endpoint, 3),
            concurrency,
            timeout_s,
            payload_bytes=64,
        )
        load.start()
        await reached(lambda: until(load))
        await load.stop()
    return load


async def reached(condition: Callable[[], bool]) -> None:
    """Look at the condition in every turn of the loop until it holds."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def look() -> None:
        if condition():
            done.set_result(None)
        elif not done.done():
            loop.call_soon(look)

    look()
    async with asyncio.timeout(20):
        await done


def test_every_request_is_answered_and_recorded_once() -> None:
    behaviour = Behaviour()
    load = uvloop.run(drive(behaviour, 4, lambda load: len(load.ends_ns) >= 1000))
    assert len(load.starts_ns) == len(load.ends_ns) == behaviour.infers
    assert not load.failed_ns
    assert behaviour.connections == 4
    assert len(behaviour.bodies) == 3  # the requests take turns
    starts, ends = np.array(load.starts_ns), np.array(load.ends_ns)
    assert (np.diff(ends) >= 0).all()
    assert (ends > starts).all()


def test_never_more_under_way_than_the_concurrency() -> None:
    behaviour = Behaviour(delay_s=0.001)
    load = asyncio.run(drive(behaviour, 3, lambda load: len(load.ends_ns) >= 60))
    starts, ends = np.array(load.starts_ns), np.array(load.ends_ns)
    under_way = [int(((starts <= at) & (ends > at)).sum()) for at in starts]
    assert max(under_way) == 3
    assert (ends - starts).min() >= 900_000  # no answer before its delay


def test_error_answers_are_failures_and_the_load_goes_on() -> None:
    behaviour = Behaviour(infer_status=lambda number: 503 if number % 3 == 0 else 200)
    load = uvloop.run(drive(behaviour, 2, lambda load: len(load.ends_ns) >= 100))
    assert set(load.failed_ns) == {"http 503"}
    assert len(load.ends_ns) + len(load.failed_ns["http 503"]) == behaviour.infers
    assert "made to fail with 503" in load.failure_texts["http 503"]
    assert behaviour.connections == 2


def test_answers_of_a_wrong_size_are_failures() -> None:
    behaviour = Behaviour(drop_floats=lambda number: int(number % 5 == 0))
    load = uvloop.run(drive(behaviour, 1, lambda load: len(load.ends_ns) >= 40))
    assert set(load.failed_ns) == {WRONG_SIZE}
    assert len(load.failed_ns[WRONG_SIZE]) == behaviour.infers // 5
    assert load.failure_texts[WRONG_SIZE] == "the answer has 60 bytes of tensors, the first one had 64"


def test_a_request_without_an_answer_is_a_timeout_and_its_connection_begins_anew() -> None:
    behaviour = Behaviour(silent=lambda number: number == 2)
    load = uvloop.run(drive(behaviour, 1, lambda load: len(load.ends_ns) >= 10, timeout_s=0.05))
    assert {kind: len(times) for kind, times in load.failed_ns.items()} == {TIMEOUT: 1}
    assert behaviour.connections == 2


def test_stopping_waits_for_answers_until_their_deadline() -> None:
    slow = Behaviour(delay_s=0.05)
    load = uvloop.run(drive(slow, 5, lambda load: slow.infers == 5))
    assert len(load.ends_ns) == 5
    silent = Behaviour(silent=lambda number: True)
    load = uvloop.run(drive(silent, 2, lambda load: silent.infers == 2, timeout_s=0.05))
    assert len(load.failed_ns[TIMEOUT]) >= 2
    assert not load.ends_ns


def test_a_server_that_goes_away_is_a_failure_per_attempt() -> None:
    async def main() -> ClosedLoop:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            endpoint = Endpoint(f"127.0.0.1:{unused.getsockname()[1]}")
            load = ClosedLoop(lambda heard: HttpConnection(endpoint, heard, HeadCache()), [b"x"], 2, 1.0)
            load.start()
            await reached(lambda: len(load.failed_ns.get(CONNECT, ())) >= 4)
            await load.stop()
            return load

    load = uvloop.run(main())
    assert set(load.failed_ns) == {CONNECT}
    assert load.failure_texts[CONNECT] == "connection refused"


def test_a_server_that_closes_after_each_answer_is_no_failure() -> None:
    behaviour = Behaviour(close_after_answer=True)
    load = uvloop.run(drive(behaviour, 2, lambda load: len(load.ends_ns) >= 20))
    assert not load.failed_ns
    assert CLOSED not in load.failure_texts
    assert behaviour.connections == behaviour.infers == len(load.ends_ns)
