"""Chunks of raw records from the processes of a load, put together: counts at the borders of windows, then records."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from efserve.loadtest.job import Schedule
from efserve.loadtest.recording import Chunk, FailedChunk, Nanos
from efserve.records import Clients, Failures, Micros, Requests


@dataclass(frozen=True, slots=True)
class Mark:
    """A border between windows, and what was counted until then, since the load began."""

    time_ns: int
    cpu_ns: int  # of all processes of load
    ended: int  # answers and failures
    due: int  # requests with an intended time before it; 0 in a closed loop


class Tally:
    """What a level has recorded so far."""

    def __init__(self, schedule: Schedule | None) -> None:
        """`schedule`: of an open loop."""
        self.begin_ns = 0
        self.marks: list[Mark] = []
        self.connections = 0
        self.waited = 0
        self.finished = False
        self._schedule = schedule
        self._chunks: list[Chunk] = []
        self._fresh = 0  # chunks from here on are not older than the last border
        self._cpu_ns = 0

    @property
    def ended(self) -> int:
        """Answers and failures so far."""
        return sum(chunk.ends_ns.size for chunk in self._chunks) + sum(f.ends_ns.size for f in self._failed())

    @property
    def ended_clients(self) -> int:
        """Short-lived clients that have ended so far."""
        return sum(chunk.clients.requests.size for chunk in self._chunks if chunk.clients is not None)

    def begin(self, begin_ns: int) -> None:
        """The load has begun at this time."""
        self.begin_ns = begin_ns

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Take one chunk of each process."""
        self._chunks += chunks
        self.connections = max(self.connections, sum(chunk.connections for chunk in chunks))
        self.waited = sum(chunk.waited for chunk in chunks)
        self.finished = all(chunk.finished for chunk in chunks)
        self._cpu_ns = sum(chunk.cpu_ns for chunk in chunks)

    def mark(self, time_ns: int) -> Mark:
        """Draw a border; chunks until this time have been added."""
        ended = sum(_until(chunk.ends_ns, time_ns) for chunk in self._chunks)
        ended += sum(_until(failed.ends_ns, time_ns) for failed in self._failed())
        self.marks.append(Mark(time_ns, self._cpu_ns, ended, self._due(time_ns)))
        return self.marks[-1]

    def last_latency_us(self) -> Micros:
        """Latencies of the requests that ended between the last two borders."""
        first_ns, last_ns = self.marks[-2].time_ns, self.marks[-1].time_ns
        parts = []
        for chunk in self._chunks[self._fresh :]:
            inside = slice(_until(chunk.ends_ns, first_ns), _until(chunk.ends_ns, last_ns))
            parts.append((chunk.ends_ns[inside] - chunk.dues_ns[inside] + 500) // 1000)
        while self._fresh < len(self._chunks) and _last(self._chunks[self._fresh].ends_ns) <= last_ns:
            self._fresh += 1
        return np.concatenate([np.empty(0, np.int64), *parts])

    def close_span(self, window_s: float) -> None:
        """Make the windows cover the true span of a load that is over: from its first send to its last end."""
        sends = [int(chunk.dues_ns.min()) for chunk in self._chunks if chunk.dues_ns.size]
        begin_ns = min(sends, default=self.begin_ns)
        if self._schedule is not None:  # the first one may have failed
            begin_ns = self.begin_ns + int(self._schedule.dues_ns[0])
        ends = [_last(chunk.ends_ns) for chunk in self._chunks] + [_last(failed.ends_ns) for failed in self._failed()]
        end_ns = max(ends, default=0)
        first = replace(self.marks[0], time_ns=begin_ns)
        last = replace(self.marks[-1], time_ns=max(end_ns, first.time_ns + 1000))
        between = [mark for mark in self.marks[1:-1] if mark.time_ns < end_ns - window_s * 5e8]
        self.marks = [first, *between, last]

    def requests(self) -> Requests:
        """The successes between the first and the last border."""
        begin_ns = self.marks[0].time_ns
        ends_ns = _joined([chunk.ends_ns for chunk in self._chunks])
        order = np.argsort(ends_ns, kind="stable")
        order = order[(ends_ns[order] > begin_ns) & (ends_ns[order] <= self.marks[-1].time_ns)]
        ends_ns = ends_ns[order]
        dues_ns = _joined([chunk.dues_ns for chunk in self._chunks])[order]
        starts_ns = _joined([chunk.starts_ns for chunk in self._chunks])[order]
        models = np.concatenate([np.empty(0, np.uint8), *(chunk.models for chunk in self._chunks)])[order]
        return Requests(
            end_us=_since_us(ends_ns, begin_ns),
            latency_us=(ends_ns - dues_ns + 500) // 1000,
            delay_us=(starts_ns - dues_ns + 500) // 1000,
            model=models,
        )

    def failures(self) -> tuple[Failures, ...]:
        """The failures between the first and the last border, by kind and model."""
        found: dict[tuple[str, int], list[FailedChunk]] = {}
        for failed in self._failed():
            found.setdefault((failed.kind, failed.model), []).append(failed)
        begin_ns, end_ns = self.marks[0].time_ns, self.marks[-1].time_ns
        failures = []
        for (kind, model), parts in found.items():
            times_ns = np.sort(_joined([part.ends_ns for part in parts]))
            inside = times_ns[(times_ns > begin_ns) & (times_ns <= end_ns)]
            if inside.size:
                failures.append(Failures(kind, parts[0].text, _since_us(inside, begin_ns), model))
        return tuple(failures)

    def clients(self) -> Clients:
        """The short-lived clients that have ended."""
        chunks = [chunk.clients for chunk in self._chunks if chunk.clients is not None]
        return Clients(
            mean_us=(_joined([chunk.mean_ns for chunk in chunks]) + 500) // 1000,
            requests=_joined([chunk.requests for chunk in chunks]),
            errors=_joined([chunk.errors for chunk in chunks]),
        )

    def _failed(self) -> list[FailedChunk]:
        return [failed for chunk in self._chunks for failed in chunk.failures]

    def _due(self, time_ns: int) -> int:
        if self._schedule is None:
            return 0
        return int(np.searchsorted(self._schedule.dues_ns, time_ns - self.begin_ns))


def _until(ends_ns: Nanos, time_ns: int) -> int:
    return int(np.searchsorted(ends_ns, time_ns, side="right"))


def _last(ends_ns: Nanos) -> int:
    return int(ends_ns[-1]) if ends_ns.size else 0


def _joined(parts: Sequence[Nanos]) -> Nanos:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _since_us(times_ns: Nanos, begin_ns: int) -> Micros:
    """Whole microseconds since the begin, rounded up: what comes after it is never counted as before."""
    since: Micros = -((begin_ns - times_ns) // 1000)
    return since
