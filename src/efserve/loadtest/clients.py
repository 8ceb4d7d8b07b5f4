"""The classic stress test: many short-lived clients, each with a connection of its own, a few of them at a time."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns

from efserve.client.connection import TIMEOUT, Connection, Listener, wrong_size
from efserve.loadtest.closed_loop import FAILURE_PAUSE_S, SWEEP_S
from efserve.loadtest.recording import Chunk, Recording


@dataclass(slots=True)
class _Client:
    """One client that runs: what it has still to send, and what came of the rest."""

    left: int
    answers: int = 0
    errors: int = 0
    latency_ns: int = 0  # sum


class ShortClients:
    """`total` clients, `at_once` of them at a time, each with `requests_each` requests, one after the other.

    A listener of their connections. Opening a connection is part of the latency of its first request.
    """

    def __init__(
        self,
        connect: Callable[[Listener], Connection],
        requests: Sequence[bytes],
        at_once: int,
        total: int,
        requests_each: int,
        timeout_s: float,
        payload_bytes: int | None = None,
    ) -> None:
        self.recording = Recording(closed=True)
        self.finished = asyncio.Event()
        self._connect = connect
        self._requests = itertools.cycle(requests)
        self._at_once = at_once
        self._clients_left = total
        self._requests_each = requests_each
        self._timeout_ns = int(timeout_s * 1e9)
        self._payload_bytes = payload_bytes
        self._running: dict[Connection, _Client] = {}
        self._paused: dict[Connection, asyncio.TimerHandle] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ShortClients {len(self._running)} running, {self._clients_left} to come>"

    def start(self) -> None:
        """Start the first clients."""
        for _ in range(self._at_once):
            self._begin()
        self._look_finished()
        self._sweep()

    def cut(self) -> Chunk:
        """What was recorded since the last call."""
        return self.recording.cut(self._at_once, 0, finished=self.finished.is_set())

    async def stop(self) -> None:
        """Start no more clients, let the running ones send no more, and wait for their answers; then close."""
        self._clients_left = 0
        for client in self._running.values():
            client.left = 0
        for connection, pause in list(self._paused.items()):
            pause.cancel()
            self._go_on(connection)
        self._look_finished()
        await self.finished.wait()
        self.close()

    def close(self) -> None:
        """Close everything at once, without waiting."""
        self._clients_left = 0
        for pause in self._paused.values():
            pause.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in self._running:
            connection.close()

    # The listener of the connections.

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        client = self._running[connection]
        if status != 200:
            self._fail(client, f"{connection.protocol} {status}", connection.error_text(), end_ns)
        elif payload_bytes != self._payload_bytes and self._payload_bytes is not None:
            self._fail(client, *wrong_size(payload_bytes, self._payload_bytes), end_ns)
        else:
            client.answers += 1
            client.latency_ns += end_ns - connection.start_ns
            self.recording.starts_ns.append(connection.start_ns)
            self.recording.ends_ns.append(end_ns)
        self._go_on(connection)

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        self._fail(self._running[connection], kind, text, end_ns)
        pause = asyncio.get_running_loop().call_later(FAILURE_PAUSE_S, self._go_on, connection)
        self._paused[connection] = pause

    # Everything below is off the hot path.

    def _fail(self, client: _Client, kind: str, text: str, end_ns: int) -> None:
        client.errors += 1
        self.recording.fail(kind, text, end_ns)

    def _begin(self) -> None:
        if self._clients_left > 0:
            self._clients_left -= 1
            connection = self._connect(self)
            self._running[connection] = _Client(self._requests_each)
            self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Send the client's next request; or end it, and let another one begin."""
        self._paused.pop(connection, None)
        client = self._running[connection]
        if client.left > 0:
            client.left -= 1
            connection.start_ns = monotonic_ns()
            connection.send(next(self._requests))
            return
        del self._running[connection]
        connection.close()
        self.recording.client_means_ns.append(client.latency_ns // max(client.answers, 1))
        self.recording.client_requests.append(client.answers)
        self.recording.client_errors.append(client.errors)
        self._begin()
        self._look_finished()

    def _look_finished(self) -> None:
        if not self._running and not self._clients_left:
            self.finished.set()

    def _sweep(self) -> None:
        """One timer for all deadlines: abort the requests that are too old."""
        oldest_ns = monotonic_ns() - self._timeout_ns
        for connection in list(self._running):
            if connection.start_ns < oldest_ns and connection not in self._paused:
                connection.abort(TIMEOUT, f"no answer within {self._timeout_ns / 1e9:g} s")
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
