"""The closed loop: each of `concurrency` connections sends its next request when it has the answer to the last.

A hot path of the benchmark. Fills a `Recording` while it runs; decides nothing about windows or stability.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from time import monotonic_ns

from efserve.client.connection import TIMEOUT, Connection, Listener, wrong_size
from efserve.loadtest.recording import Chunk, Recording

FAILURE_PAUSE_S = 0.05  # before a broken connection is opened again, so that a dead server is not hammered
SWEEP_S = 0.1  # how often the deadlines of requests are looked at
ENDLESS = 1 << 62


class ClosedLoop:
    """Load at one level; a `Listener` of its connections.

    `starts_ns` and `ends_ns` grow by one entry per success, in the order of the ends; `failed_ns` by kind.
    """

    def __init__(
        self,
        connect: Callable[[Listener], Connection],
        requests: Sequence[bytes],
        concurrency: int,
        timeout_s: float,
        payload_bytes: int | None = None,
        request_count: int = 0,
    ) -> None:
        """`payload_bytes`: of right answers, None when they may differ; `request_count`: send no more, 0 for no end."""
        self.recording = Recording(closed=True)
        self.starts_ns = self.recording.starts_ns
        self.ends_ns = self.recording.ends_ns
        self.failed_ns = self.recording.failed_ns
        self.failure_texts = self.recording.failure_texts
        self.finished = asyncio.Event()  # nothing is under way, and nothing more will be sent
        self._left = request_count or ENDLESS  # requests that may still be sent
        self._connections = [connect(self) for _ in range(min(concurrency, self._left))]
        self._requests = itertools.cycle(requests)
        self._timeout_ns = int(timeout_s * 1e9)
        self._payload_bytes = payload_bytes
        self._under_way: set[Connection] = set()
        self._paused: dict[Connection, asyncio.TimerHandle] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._left <= 0 else "running"
        return f"<ClosedLoop {len(self._connections)} {state}, {len(self.ends_ns)} answers>"

    def start(self) -> None:
        """Send the first request on every connection."""
        self._under_way.update(self._connections)
        for connection in self._connections:
            self._send(connection)
        self._sweep()

    def cut(self) -> Chunk:
        """What was recorded since the last call."""
        return self.recording.cut(len(self._connections), 0, finished=self.finished.is_set())

    async def stop(self) -> None:
        """Send nothing more and wait for the answers under way, each until its deadline; then close."""
        self._left = 0
        for connection, pause in list(self._paused.items()):
            pause.cancel()
            self._rest(connection)
        if self._under_way:
            await self.finished.wait()
        self.close()

    def close(self) -> None:
        """Close everything at once, without waiting."""
        self._left = 0
        for pause in self._paused.values():
            pause.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in self._connections:
            connection.close()

    # The listener of the connections.

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        if status != 200:
            self.recording.fail(f"{connection.protocol} {status}", connection.error_text(), end_ns)
        elif payload_bytes != self._payload_bytes and self._payload_bytes is not None:
            self.recording.fail(*wrong_size(payload_bytes, self._payload_bytes), end_ns)
        else:
            self.starts_ns.append(connection.start_ns)
            self.ends_ns.append(end_ns)
        if self._left > 0:
            self._left -= 1
            connection.start_ns = monotonic_ns()
            connection.send(next(self._requests))
        else:
            self._rest(connection)

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        self.recording.fail(kind, text, end_ns)
        if self._left > 0:
            loop = asyncio.get_running_loop()
            self._paused[connection] = loop.call_later(FAILURE_PAUSE_S, self._send, connection)
        else:
            self._rest(connection)

    # Everything below is off the hot path.

    def _send(self, connection: Connection) -> None:
        self._paused.pop(connection, None)
        if self._left <= 0:
            self._rest(connection)
            return
        self._left -= 1
        connection.start_ns = monotonic_ns()
        connection.send(next(self._requests))

    def _rest(self, connection: Connection) -> None:
        self._under_way.discard(connection)
        if not self._under_way:
            self.finished.set()

    def _sweep(self) -> None:
        """One timer for all deadlines: abort the requests that are too old."""
        oldest_ns = monotonic_ns() - self._timeout_ns
        for connection in list(self._under_way):
            if connection.start_ns < oldest_ns and connection not in self._paused:
                connection.abort(TIMEOUT, f"no answer within {self._timeout_ns / 1e9:g} s")
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
