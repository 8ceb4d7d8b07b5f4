"""The closed loop: each of `concurrency` connections sends its next request when it has the answer to the last.

The hot path of the benchmark. Owns the raw records while a level runs; decides nothing about windows or stability.
"""

import asyncio
import itertools
from array import array
from collections.abc import Callable, Sequence
from time import monotonic_ns

from efserve.client.connection import TIMEOUT, WRONG_SIZE, Connection, Listener

FAILURE_PAUSE_S = 0.05  # before a broken connection is opened again, so that a dead server is not hammered
SWEEP_S = 0.1  # how often the deadlines of requests are looked at


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
    ) -> None:
        """`payload_bytes`: binary bytes of a right answer; None when answers may differ in size."""
        self.starts_ns = array("q")
        self.ends_ns = array("q")
        self.failed_ns: dict[str, array[int]] = {}
        self.failure_texts: dict[str, str] = {}  # kind -> what was said the first time
        self._connections = [connect(self) for _ in range(concurrency)]
        self._requests = itertools.cycle(requests)
        self._timeout_ns = int(timeout_s * 1e9)
        self._payload_bytes = payload_bytes
        self._running = False
        self._under_way: set[Connection] = set()
        self._paused: dict[Connection, asyncio.TimerHandle] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        return f"<ClosedLoop {len(self._connections)} {state}, {len(self.ends_ns)} answers>"

    def start(self) -> None:
        """Send the first request on every connection."""
        self._running = True
        self._under_way.update(self._connections)
        for connection in self._connections:
            self._send(connection)
        self._sweep()

    async def stop(self) -> None:
        """Send nothing more and wait for the answers under way, each until its deadline; then close."""
        self._running = False
        for connection, pause in self._paused.items():
            pause.cancel()
            self._under_way.discard(connection)
        if self._under_way:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        self.close()

    def close(self) -> None:
        """Close everything at once, without waiting."""
        self._running = False
        for pause in self._paused.values():
            pause.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in self._connections:
            connection.close()

    # The listener of the connections.

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        if status != 200:
            self._count(f"http {status}", connection.error_text(), end_ns)
        elif payload_bytes != self._payload_bytes and self._payload_bytes is not None:
            text = f"the answer has {payload_bytes} bytes of tensors, the first one had {self._payload_bytes}"
            self._count(WRONG_SIZE, text, end_ns)
        else:
            self.starts_ns.append(connection.start_ns)
            self.ends_ns.append(end_ns)
        if self._running:
            connection.start_ns = monotonic_ns()
            connection.send(next(self._requests))
        else:
            self._rest(connection)

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        self._count(kind, text, end_ns)
        if self._running:
            loop = asyncio.get_running_loop()
            self._paused[connection] = loop.call_later(FAILURE_PAUSE_S, self._send, connection)
        else:
            self._rest(connection)

    # Everything below is off the hot path.

    def _send(self, connection: Connection) -> None:
        self._paused.pop(connection, None)
        connection.start_ns = monotonic_ns()
        connection.send(next(self._requests))

    def _count(self, kind: str, text: str, end_ns: int) -> None:
        self.failed_ns.setdefault(kind, array("q")).append(end_ns)
        self.failure_texts.setdefault(kind, text)

    def _rest(self, connection: Connection) -> None:
        self._under_way.discard(connection)
        if not self._under_way and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _sweep(self) -> None:
        """One timer for all deadlines: abort the requests that are too old."""
        oldest_ns = monotonic_ns() - self._timeout_ns
        for connection in list(self._under_way):
            if connection.start_ns < oldest_ns and connection not in self._paused:
                connection.abort(TIMEOUT, f"no answer within {self._timeout_ns / 1e9:g} s")
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
