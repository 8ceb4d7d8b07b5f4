"""The open loop over real connections: what is sent when, on how many connections, and what is recorded of it."""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import uvloop

from efserve.client.answers import HeadCache
from efserve.client.connection import TIMEOUT
from efserve.client.endpoint import Endpoint
from efserve.client.http import HttpConnection, prepare
from efserve.client.infer import infer_body
from efserve.loadtest.open_loop import OpenLoop
from efserve.loadtest.recording import Chunk
from efserve.loadtest.timer import PreciseTimer
from efserve.tensors import TensorSpec
from v2_server import Behaviour, running

MILLISECOND = 1_000_000


def request(endpoint: Endpoint, value: float) -> bytes:
    body = infer_body([TensorSpec("input", "FP32", (-1, 16))], [np.full((1, 16), value, np.float32)], binary=True)
    return prepare(endpoint, "POST", "/v2/models/echo/infer", body.data, body.headers)


async def drive(
    behaviour: Behaviour,
    dues_ns: Sequence[int],
    *,
    models: bytes = b"",
    limit: int = 100,
    timeout_s: float = 10.0,
    until: Callable[[OpenLoop], bool] | None = None,
) -> tuple[Chunk, int]:
    """Everything recorded of a loop that ran to its end, or was stopped, and its begin."""
    async with running(behaviour) as url:
        endpoint, heads = Endpoint(url), HeadCache()
        begin_ns = time.monotonic_ns() + 5 * MILLISECOND
        load = OpenLoop(
            lambda listener: HttpConnection(endpoint, listener, heads),
            [[request(endpoint, 0), request(endpoint, 1)], [request(endpoint, 2)]],
            [64, 64],
            np.array(dues_ns, np.int64) + begin_ns,
            models or bytes(len(dues_ns)),
            timeout_s,
            limit,
        )
        load.start()
        async with asyncio.timeout(20):
            if until is None:
                await load.finished.wait()
            else:
                while not until(load):  # noqa: ASYNC110  # every turn of the loop is looked at, nothing is slept
                    await asyncio.sleep(0)
        await load.stop()
        return load.cut(), begin_ns


def every(gap_ns: int, count: int) -> list[int]:
    return [gap_ns * index for index in range(count)]


def test_every_request_is_sent_once_and_never_before_its_time() -> None:
    behaviour = Behaviour()
    chunk, begin_ns = uvloop.run(drive(behaviour, every(MILLISECOND, 200)))
    assert behaviour.infers == len(chunk.ends_ns) == 200
    assert (np.sort(chunk.dues_ns) == np.array(every(MILLISECOND, 200)) + begin_ns).all()
    assert (chunk.starts_ns >= chunk.dues_ns).all()
    assert (chunk.ends_ns > chunk.starts_ns).all()
    assert (np.diff(chunk.ends_ns) >= 0).all()
    assert chunk.waited == 0
    assert chunk.finished


def test_it_works_in_any_loop() -> None:
    chunk, _ = asyncio.run(drive(Behaviour(), every(MILLISECOND, 20)))
    assert len(chunk.ends_ns) == 20


def test_requests_do_not_wait_for_answers() -> None:
    """All are under way before the first answer: the server is told to be slow."""
    behaviour = Behaviour(delay_s=0.3)
    chunk, _ = uvloop.run(drive(behaviour, every(100_000, 50)))
    assert behaviour.connections == chunk.connections == 50
    assert chunk.starts_ns.max() < chunk.ends_ns.min()
    assert chunk.waited == 0


def test_without_a_free_connection_latency_counts_from_the_intended_time() -> None:
    behaviour = Behaviour(delay_s=0.02)
    chunk, _ = uvloop.run(drive(behaviour, [0] * 8, limit=2))
    assert behaviour.connections == chunk.connections == 2
    assert chunk.waited == 6
    latency_ms = (chunk.ends_ns - chunk.dues_ns) / 1e6
    turn = np.arange(8) // 2 + 1  # two at a time
    assert (latency_ms >= 19 * turn).all()
    under_way = [int(((chunk.starts_ns <= at) & (chunk.ends_ns > at)).sum()) for at in chunk.starts_ns]
    assert max(under_way) == 2


def test_models_get_their_own_requests_and_answers() -> None:
    behaviour = Behaviour(drop_floats=lambda number: int(number % 3 == 0))
    chunk, _ = uvloop.run(drive(behaviour, every(MILLISECOND, 30), models=bytes([0, 1, 1] * 10), limit=1))
    assert len(behaviour.bodies) == 3  # two of the first model in turn, one of the second
    assert chunk.models.tolist() == [0, 1] * 10  # every third answer, always of the second model, was too short
    (failed,) = chunk.failures
    assert (failed.kind, failed.model, len(failed.ends_ns)) == ("wrong size", 1, 10)


def test_a_request_without_an_answer_is_a_timeout_of_its_own() -> None:
    behaviour = Behaviour(silent=lambda number: number == 2)
    chunk, _ = uvloop.run(drive(behaviour, every(MILLISECOND, 10), timeout_s=0.1))
    assert len(chunk.ends_ns) == 9
    assert [(failed.kind, len(failed.ends_ns)) for failed in chunk.failures] == [(TIMEOUT, 1)]


def test_stopping_sends_nothing_more_and_waits_for_answers() -> None:
    behaviour = Behaviour(delay_s=0.05)
    dues_ns = [0, 0, 3_600_000 * MILLISECOND]
    chunk, _ = uvloop.run(drive(behaviour, dues_ns, until=lambda load: behaviour.infers == 2))
    assert len(chunk.ends_ns) == behaviour.infers == 2
    queued, _ = uvloop.run(drive(behaviour, [0] * 9, limit=1, until=lambda load: behaviour.infers >= 3))
    assert len(queued.ends_ns) < 9


def test_refused_connections_are_failures_and_the_load_goes_on() -> None:
    async def main() -> Chunk:
        async with running(Behaviour()) as url:
            endpoint = Endpoint(url)
        load = OpenLoop(
            lambda listener: HttpConnection(endpoint, listener, HeadCache()),
            [[b"x"]],
            [None],
            np.full(20, time.monotonic_ns(), np.int64),
            bytes(20),
            1.0,
            3,
        )
        load.start()
        async with asyncio.timeout(20):
            await load.finished.wait()
        await load.stop()
        return load.cut()

    chunk = uvloop.run(main())
    assert [(failed.kind, failed.text, len(failed.ends_ns)) for failed in chunk.failures] == [
        ("connect", "connection refused", 20)
    ]


def test_the_timer_comes_when_it_is_due_and_only_once() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        called: list[int] = []

        def on_time() -> None:
            called.append(time.monotonic_ns())
            if len(called) < 3:
                timer.arm(dues[len(called)])
            else:
                timer.disarm()
                loop.call_later(0.01, done.set_result, None)

        timer = PreciseTimer(on_time)
        timer.open()
        dues = [time.monotonic_ns() + 1_500_000 * index for index in range(3)]
        timer.arm(dues[0])
        async with asyncio.timeout(10):
            await done
        timer.close()
        assert all(at >= due for at, due in zip(called, dues, strict=True))
        return called

    assert len(uvloop.run(main())) == 3
    assert len(asyncio.run(main())) == 3
