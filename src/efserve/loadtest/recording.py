"""The raw records of a loop of load while it runs, and the chunks in which they are handed on."""

import time
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Nanos = npt.NDArray[np.int64]  # [n] monotonic time


@dataclass(frozen=True, slots=True, eq=False)
class FailedChunk:
    """Failures of one kind to one model."""

    kind: str
    text: str  # what was said the first time
    model: int
    ends_ns: Nanos


@dataclass(frozen=True, slots=True, eq=False)
class ClientsChunk:
    """Short-lived clients that have ended."""

    mean_ns: Nanos
    requests: Nanos
    errors: Nanos


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What one load process has recorded since its last chunk, and what it counts since its begin."""

    ends_ns: Nanos  # ascending
    starts_ns: Nanos  # when each was sent
    dues_ns: Nanos  # when it was to be sent; as starts_ns in a closed loop
    models: npt.NDArray[np.uint8]
    failures: tuple[FailedChunk, ...]
    clients: ClientsChunk | None
    cpu_ns: int  # of the process, since it began
    connections: int  # opened, at most
    waited: int  # requests that waited for a free connection
    finished: bool  # everything that there was to send has been answered


class Recording:
    """Grows while load runs; the loops append to its arrays on their hot path."""

    def __init__(self, *, closed: bool) -> None:
        self.starts_ns = array("q")
        self.ends_ns = array("q")
        self.dues_ns = self.starts_ns if closed else array("q")
        self.models = array("B")  # stays empty in a closed loop
        self.failed_ns: dict[str, array[int]] = {}  # by kind
        self.failed_models: dict[str, array[int]] = {}
        self.failure_texts: dict[str, str] = {}
        self.client_means_ns = array("q")
        self.client_requests = array("q")
        self.client_errors = array("q")
        self._closed = closed
        self._cut = 0
        self._failures_cut: dict[str, int] = {}
        self._clients_cut = 0

    def fail(self, kind: str, text: str, end_ns: int, model: int = 0) -> None:
        """Count a failure."""
        if kind not in self.failed_ns:
            self.failed_ns[kind], self.failed_models[kind], self.failure_texts[kind] = array("q"), array("B"), text
        self.failed_ns[kind].append(end_ns)
        self.failed_models[kind].append(model)

    def cut(self, connections: int, waited: int, *, finished: bool) -> Chunk:
        """What is new since the last call."""
        first, last = self._cut, len(self.ends_ns)
        self._cut = last
        starts_ns = _nanos(self.starts_ns[first:last])
        models = np.frombuffer(self.models[first:last], np.uint8)
        return Chunk(
            ends_ns=_nanos(self.ends_ns[first:last]),
            starts_ns=starts_ns,
            dues_ns=starts_ns if self._closed else _nanos(self.dues_ns[first:last]),
            models=np.zeros(last - first, np.uint8) if self._closed else models,
            failures=self._cut_failures(),
            clients=self._cut_clients(),
            cpu_ns=time.process_time_ns(),
            connections=connections,
            waited=waited,
            finished=finished,
        )

    def _cut_failures(self) -> tuple[FailedChunk, ...]:
        found = []
        for kind, failed_ns in self.failed_ns.items():
            first = self._failures_cut.get(kind, 0)
            self._failures_cut[kind] = len(failed_ns)
            ends_ns = _nanos(failed_ns[first:])
            models = np.frombuffer(self.failed_models[kind][first:], np.uint8)
            text = self.failure_texts[kind]
            found += [FailedChunk(kind, text, int(m), ends_ns[models == m]) for m in np.unique(models)]
        return tuple(found)

    def _cut_clients(self) -> ClientsChunk | None:
        first, self._clients_cut = self._clients_cut, len(self.client_means_ns)
        if first == self._clients_cut:
            return None
        return ClientsChunk(
            _nanos(self.client_means_ns[first:]),
            _nanos(self.client_requests[first:]),
            _nanos(self.client_errors[first:]),
        )


def _nanos(values: "array[int]") -> Nanos:
    return np.frombuffer(values, np.int64)
