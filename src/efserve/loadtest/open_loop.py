"""The open loop: requests are sent at their intended times, whether the server has answered the last ones or not.

A hot path of the benchmark: one timer sends everything that is due. When no connection is free and no more may be
opened, requests wait here, and their latency goes on counting from the intended time.
"""

import asyncio
import itertools
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from time import monotonic_ns

from efserve.client.connection import TIMEOUT, Connection, Listener, wrong_size
from efserve.loadtest.recording import Chunk, Nanos, Recording
from efserve.loadtest.timer import PreciseTimer

SWEEP_S = 0.1  # how often the deadlines of requests are looked at
BUSY_GAP_NS = 100_000  # mean time between requests, below which those of DAWDLE_NS are sent together
DAWDLE_NS = 70_000  # each wake-up costs the client as much as two requests
OPEN_AT_ONCE = 8  # connections; then answers are read, which may free others: a late client opens no thousand of them
OPEN_PAUSE_NS = 100_000
FREE = 1 << 62  # `start_ns` of a connection without a request: after every deadline


class OpenLoop:
    """Load at one level; a `Listener` of its connections, of which there are as many as the answers need."""

    def __init__(
        self,
        connect: Callable[[Listener], Connection],
        requests: Sequence[Sequence[bytes]],
        payload_bytes: Sequence[int | None],
        dues_ns: Nanos,
        models: bytes,
        timeout_s: float,
        max_connections: int,
    ) -> None:
        """`requests`, and `payload_bytes` of right answers, per model; `models`: to which each of `dues_ns` goes."""
        self.recording = Recording(closed=False)
        self.finished = asyncio.Event()  # nothing is under way, and nothing more will be sent
        self._connect = connect
        self._requests = [itertools.cycle(single) for single in requests]
        self._payload_bytes = tuple(payload_bytes)
        self._dues_ns = array("q", dues_ns.tobytes())
        self._models = models
        self._next = 0  # the request to send next
        self._end = len(self._dues_ns)
        self._dawdle_ns = DAWDLE_NS if _mean_gap_ns(dues_ns) < BUSY_GAP_NS else 0
        self._timeout_ns = int(timeout_s * 1e9)
        self._limit = max_connections
        self._connections: list[Connection] = []
        self._free: list[Connection] = []
        self._full = False  # the next request is due, and waits for a connection
        self._waited = 0
        self._timer = PreciseTimer(self._send_due)
        self._armed = False
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        under_way = len(self._connections) - len(self._free)
        return f"<OpenLoop {self._next} of {self._end} sent, {under_way} under way on {len(self._connections)}>"

    def start(self) -> None:
        """Begin to send; what is due already goes out at once."""
        self._timer.open()
        self._sweep()
        self._send_due()

    def cut(self) -> Chunk:
        """What was recorded since the last call."""
        return self.recording.cut(len(self._connections), self._waiting(), finished=self.finished.is_set())

    async def stop(self) -> None:
        """Send nothing more and wait for the answers under way, each until its deadline; then close."""
        self._end = self._next
        self._full = False
        self._send_due()  # nothing: but the timer rests
        self._look_finished()
        await self.finished.wait()
        self.close()

    def close(self) -> None:
        """Close everything at once, without waiting."""
        self._end = self._next
        self._timer.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in self._connections:
            connection.close()

    def _send_due(self) -> None:
        """Send what is due: one request, or a bunch when late; then wait for the next."""
        dues_ns, models, free = self._dues_ns, self._models, self._free
        at, end = self._next, self._end
        may_open, pause_ns = OPEN_AT_ONCE, self._dawdle_ns
        now_ns = monotonic_ns()
        while at < end and dues_ns[at] <= now_ns:
            if free:
                connection = free.pop()
            elif len(self._connections) >= self._limit:
                self._full = True
                break
            elif may_open:
                may_open -= 1
                connection = self._connect(self)
                self._connections.append(connection)
            else:
                pause_ns = OPEN_PAUSE_NS
                break
            model = models[at]
            connection.due_ns = dues_ns[at]
            connection.model = model
            at += 1
            connection.start_ns = now_ns = monotonic_ns()
            connection.send(next(self._requests[model]))
        self._next = at
        if at < end and not self._full:
            self._timer.arm(max(dues_ns[at], now_ns + pause_ns))
            self._armed = True
        elif self._armed:
            self._timer.disarm()
            self._armed = False

    # The listener of the connections.

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        model = connection.model
        right_bytes = self._payload_bytes[model]
        recording = self.recording
        if status != 200:
            recording.fail(f"{connection.protocol} {status}", connection.error_text(), end_ns, model)
        elif payload_bytes != right_bytes and right_bytes is not None:
            recording.fail(*wrong_size(payload_bytes, right_bytes), end_ns, model)
        else:
            recording.starts_ns.append(connection.start_ns)
            recording.dues_ns.append(connection.due_ns)
            recording.ends_ns.append(end_ns)
            recording.models.append(model)
        connection.start_ns = FREE
        self._free.append(connection)
        if self._full or self._next >= self._end:
            self._freed()

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        self.recording.fail(kind, text, end_ns, connection.model)
        connection.start_ns = FREE
        self._free.append(connection)
        if self._full or self._next >= self._end:
            asyncio.get_running_loop().call_soon(self._freed)  # not from within `send`, which may have failed

    def _freed(self) -> None:
        """A connection is free, and requests wait for one, or there are none left to send."""
        if self._full and self._free:
            self._full = False
            self._waited += self._next < self._end
            self._send_due()
        self._look_finished()

    # Everything below is off the hot path.

    def _waiting(self) -> int:
        """Requests that have waited for a connection, those that wait now included."""
        overdue = bisect_right(self._dues_ns, monotonic_ns(), self._next, self._end) - self._next if self._full else 0
        return self._waited + overdue

    def _look_finished(self) -> None:
        if self._next >= self._end and len(self._free) == len(self._connections):
            self.finished.set()

    def _sweep(self) -> None:
        """One timer for all deadlines: abort the requests that are too old."""
        oldest_ns = monotonic_ns() - self._timeout_ns
        for connection in self._connections:
            if connection.start_ns < oldest_ns:
                connection.abort(TIMEOUT, f"no answer within {self._timeout_ns / 1e9:g} s")
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


def _mean_gap_ns(dues_ns: Nanos) -> float:
    return float(dues_ns[-1] - dues_ns[0]) / (len(dues_ns) - 1) if len(dues_ns) > 1 else BUSY_GAP_NS
