"""What one process of load has to do: plain values that travel to other processes, and the loop that does it."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from efserve.client.endpoint import SYSTEM_TRUST, Trust
from efserve.client.server import Connector
from efserve.loadtest.clients import ShortClients
from efserve.loadtest.closed_loop import ClosedLoop
from efserve.loadtest.open_loop import OpenLoop
from efserve.loadtest.recording import Nanos
from efserve.records import LoadedModel

Loop = ClosedLoop | OpenLoop | ShortClients


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests to one model: whole messages, sent in turn."""

    model: LoadedModel
    requests: tuple[bytes, ...]
    payload_bytes: int | None  # binary bytes of a right answer; None when answers may differ in size


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The requests of an open loop: when, since the begin, and to which model."""

    dues_ns: Nanos  # ascending
    models: npt.NDArray[np.uint8]

    def part(self, index: int, parts: int) -> "Schedule":
        """Every `parts`-th request."""
        return Schedule(self.dues_ns[index::parts], self.models[index::parts])


@dataclass(frozen=True, slots=True)
class ClosedJob:
    """A closed loop; `request_count` 0: without an end."""

    concurrency: int
    request_count: int = 0

    @property
    def connections(self) -> int:
        """At a time, at most."""
        return self.concurrency

    @property
    def total(self) -> int:
        """Requests that it has to send; 0: without an end."""
        return self.request_count


@dataclass(frozen=True, slots=True)
class OpenJob:
    """An open loop on at most so many connections."""

    schedule: Schedule
    max_connections: int

    @property
    def connections(self) -> int:
        """At a time, at most."""
        return self.max_connections

    @property
    def total(self) -> int:
        """Requests that it has to send."""
        return len(self.schedule.dues_ns)


@dataclass(frozen=True, slots=True)
class ClientsJob:
    """A stress test by short-lived clients."""

    at_once: int
    total: int
    requests_each: int

    @property
    def connections(self) -> int:
        """At a time, at most."""
        return self.at_once


Work = ClosedJob | OpenJob | ClientsJob


@dataclass(frozen=True, slots=True)
class LoadJob:
    """A load and its target."""

    url: str
    traffic: tuple[Traffic, ...]  # per model; only an open loop has several
    timeout_s: float
    work: Work
    trust: Trust = SYSTEM_TRUST

    def split(self, parts: int) -> "list[LoadJob]":
        """The same load spread over at most so many processes: fewer where a share would be empty."""
        return [replace(self, work=share) for share in _shares(self.work, parts)]


def _shares(work: Work, parts: int) -> list[Work]:
    if isinstance(work, OpenJob):
        parts = max(1, min(parts, work.max_connections, len(work.schedule.dues_ns)))
        limits = _even(work.max_connections, parts)
        return [OpenJob(work.schedule.part(index, parts), limits[index]) for index in range(parts)]
    if isinstance(work, ClientsJob):
        parts = min(parts, work.at_once, work.total)
        shares = zip(_even(work.at_once, parts), _even(work.total, parts), strict=True)
        return [ClientsJob(at_once, total, work.requests_each) for at_once, total in shares]
    parts = min(parts, work.concurrency, work.request_count or parts)
    shares = zip(_even(work.concurrency, parts), _even(work.request_count, parts), strict=True)
    return [ClosedJob(concurrency, count) for concurrency, count in shares]


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def make_loop(job: LoadJob, begin_ns: int) -> Loop:
    """The loop of a job, not started yet; the times of an open one count from `begin_ns`."""
    connect = Connector(job.url, job.trust)
    work, first = job.work, job.traffic[0]
    if isinstance(work, OpenJob):
        return OpenLoop(
            connect,
            [traffic.requests for traffic in job.traffic],
            [traffic.payload_bytes for traffic in job.traffic],
            work.schedule.dues_ns + begin_ns,
            work.schedule.models.tobytes(),
            job.timeout_s,
            work.max_connections,
        )
    if isinstance(work, ClientsJob):
        return ShortClients(
            connect, first.requests, work.at_once, work.total, work.requests_each, job.timeout_s, first.payload_bytes
        )
    return ClosedLoop(connect, first.requests, work.concurrency, job.timeout_s, first.payload_bytes, work.request_count)
