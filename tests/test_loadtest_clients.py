"""Many short-lived clients: each with its own connection, so many at a time, every request counted."""

import asyncio

import numpy as np
import uvloop

from efserve.client.answers import HeadCache
from efserve.client.endpoint import Endpoint
from efserve.client.http import HttpConnection, prepare
from efserve.client.infer import infer_body
from efserve.loadtest.clients import ShortClients
from efserve.loadtest.recording import Chunk
from efserve.tensors import TensorSpec
from v2_server import Behaviour, running


async def drive(
    behaviour: Behaviour, at_once: int, total: int, requests_each: int, stop_at: int = 0, timeout_s: float = 10.0
) -> Chunk:
    async with running(behaviour) as url:
        endpoint, heads = Endpoint(url), HeadCache()
        body = infer_body([TensorSpec("input", "FP32", (-1, 16))], [np.zeros((1, 16), np.float32)], binary=True)
        request = prepare(endpoint, "POST", "/v2/models/echo/infer", body.data, body.headers)
        load = ShortClients(
            lambda listener: HttpConnection(endpoint, listener, heads),
            [request],
            at_once,
            total,
            requests_each,
            timeout_s,
            64,
        )
        load.start()
        async with asyncio.timeout(20):
            while not load.finished.is_set() and not (stop_at and behaviour.infers >= stop_at):  # noqa: ASYNC110  # each turn
                await asyncio.sleep(0)
            await load.stop()
        return load.cut()


def test_every_client_has_its_connection_and_its_requests() -> None:
    behaviour = Behaviour()
    chunk = uvloop.run(drive(behaviour, 5, 23, 7))
    assert behaviour.connections == 23
    assert len(chunk.ends_ns) == behaviour.infers == 23 * 7
    assert chunk.clients is not None
    assert chunk.clients.requests.tolist() == [7] * 23
    assert chunk.clients.errors.tolist() == [0] * 23
    mean_ns = (chunk.ends_ns - chunk.starts_ns).mean()
    assert abs(chunk.clients.mean_ns.mean() - mean_ns) <= 1  # whole nanoseconds
    assert chunk.finished


def test_so_many_at_a_time_and_no_more() -> None:
    chunk = uvloop.run(drive(Behaviour(delay_s=0.002), 3, 12, 4))
    under_way = [int(((chunk.starts_ns <= at) & (chunk.ends_ns > at)).sum()) for at in chunk.starts_ns]
    assert max(under_way) == 3


def test_errors_are_counted_for_their_client() -> None:
    behaviour = Behaviour(infer_status=lambda number: 503 if number <= 3 else 200)
    chunk = uvloop.run(drive(behaviour, 1, 3, 4))
    assert chunk.clients is not None
    assert chunk.clients.requests.tolist() == [1, 4, 4]
    assert chunk.clients.errors.tolist() == [3, 0, 0]
    assert [(failed.kind, len(failed.ends_ns)) for failed in chunk.failures] == [("http 503", 3)]


def test_a_client_without_any_answer_has_a_mean_of_nothing() -> None:
    chunk = uvloop.run(drive(Behaviour(silent=lambda number: number == 1), 1, 2, 1, timeout_s=0.05))
    assert chunk.clients is not None
    assert chunk.clients.requests.tolist() == [0, 1]
    assert chunk.clients.mean_ns[0] == 0


def test_stopping_waits_for_what_is_under_way() -> None:
    behaviour = Behaviour(delay_s=0.02)
    chunk = uvloop.run(drive(behaviour, 4, 1000, 10, stop_at=6))
    assert len(chunk.ends_ns) == behaviour.infers < 20
    assert chunk.clients is not None
    assert len(chunk.clients.requests) == behaviour.connections
