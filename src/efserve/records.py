"""Result files of `efserve bench`: what was measured, raw records first, and the statistics made from them.

Owns the values, their JSON form and the facts of the machine. The statistics are computed by `stats.py`, from a
`LevelRecord` alone, so that every figure of a file can be made again from the same file.
"""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from efserve.devices.cpu import cpu_model
from efserve.errors import UsageError
from efserve.intervals import Interval
from efserve.packing import pack, unpack

SCHEMA_VERSION = 2
LIBRARIES = ("numpy", "uvloop", "httptools", "onnxruntime", "torch")

Micros = npt.NDArray[np.int64]  # [n] whole microseconds
Indices = npt.NDArray[np.uint8]  # [n]
Gauges = npt.NDArray[np.float64]  # [n]


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that measured: no names of hosts or users."""

    cpu_model: str
    cores: int  # that this process may use
    memory_bytes: int
    kernel: str
    python: str
    libraries: dict[str, str]  # name -> version, of those installed


@dataclass(frozen=True, slots=True)
class Load:
    """What one level asks of the server.

    kind "concurrency": a closed loop, `value` requests under way. "rate": an open loop, `value` requests/s (of all
    models together). "schedule": an open loop at the times of a trace. "clients": `value` short-lived clients at once.
    """

    kind: str
    value: float  # 0 for a schedule
    distribution: str = ""  # of the times between requests: constant, poisson, gamma; only for "rate"
    shape: str = ""  # step, ramp, sine, burst: `value` is then the greatest rate; only for "rate"
    label: str = ""  # for tables: "8", "400/s", "ramp 100:1000/s", "trace", "5 clients"

    @classmethod
    def closed(cls, concurrency: int) -> Self:
        """A closed loop."""
        return cls("concurrency", float(concurrency), label=str(concurrency))

    @classmethod
    def rate(cls, per_s: float, distribution: str = "constant") -> Self:
        """An open loop at a steady rate."""
        return cls("rate", float(per_s), distribution, label=f"{per_s:g}/s")

    @property
    def is_open(self) -> bool:
        """True when requests have intended times, whatever the server does."""
        return self.kind in ("rate", "schedule")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model under load at one level."""

    name: str
    version: str
    rows_per_request: int
    slo_ms: float = 0.0  # 0: none was given


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """The successful requests of a level in the order in which they ended; times in us since its first window began.

    Latency counts from the intended send in an open loop, from the send in a closed one. The delay is the part of it
    that passed before the request was sent: the client was late, or had no free connection; all 0 in a closed loop.
    """

    end_us: Micros  # ascending
    latency_us: Micros
    delay_us: Micros
    model: Indices  # into `LevelRecord.models`

    @classmethod
    def closed(cls, end_us: Micros, latency_us: Micros) -> Self:
        """Requests of a closed loop on one model: no delay."""
        return cls(end_us, latency_us, np.zeros(end_us.size, np.int64), np.zeros(end_us.size, np.uint8))

    @property
    def service_us(self) -> Micros:
        """From the actual send to the end of the answer."""
        return self.latency_us - self.delay_us


@dataclass(frozen=True, slots=True, eq=False)
class Failures:
    """The failed requests of one kind to one model: `http 503`, `timeout`, `closed`, ..."""

    kind: str
    text: str  # what the server or the system said the first time
    end_us: Micros  # ascending
    model: int = 0  # into `LevelRecord.models`


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a level, and the CPU time that the load generator's processes used in it."""

    start_us: int
    end_us: int
    client_cpu_us: int
    due: int = 0  # requests whose intended time lies in it; 0 in a closed loop


@dataclass(frozen=True, slots=True)
class Pool:
    """The client's side of a level: its processes, and the connections of an open loop."""

    processes: int
    connections: int  # opened, at most
    limit: int  # of connections; 0: none
    waited: int  # requests for which no connection was free at their intended time
    unanswered: int  # requests that were due before the last window ended, and had no answer then


@dataclass(frozen=True, slots=True, eq=False)
class Clients:
    """The short-lived clients of a stress test, in the order in which they ended: one entry each."""

    mean_us: Micros  # mean latency of its answered requests; 0 when it had none
    requests: Micros  # answered
    errors: Micros


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Gauges read during a level, at common times; nan where one could not be read."""

    time_us: Micros  # since the first window began, ascending
    series: dict[str, Gauges]  # name, with its unit -> a value per time
    remark: str = ""  # why some series end early, or are not there


@dataclass(frozen=True, slots=True)
class ServerCounters:
    """What the server's own statistics counted: totals, or the difference of two readings."""

    requests: int
    inferences: int  # rows
    executions: int  # runs of the model
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class LevelRecord:
    """One load level as it was measured. Figures cover the last `reported` windows."""

    load: Load
    models: tuple[LoadedModel, ...]  # one, but for mixed traffic
    windows: tuple[Window, ...]  # contiguous, from 0 us on
    reported: int
    stable: bool
    reason: str  # why the level is not stable
    requests: Requests
    failures: tuple[Failures, ...]
    server: tuple[ServerCounters | None, ...]  # per model, over all windows; None when it has no statistics
    pool: Pool | None = None
    clients: Clients | None = None
    samples: Samples | None = None


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Latency of successful requests, in us; `deviation_us` is the standard deviation of the population."""

    mean_us: float
    deviation_us: float
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float
    p99_9_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """Where figures of a level lie with 95 % confidence; None where there are too few requests to tell."""

    requests_per_s: Interval | None
    mean_us: Interval | None
    p50_us: Interval | None
    p90_us: Interval | None
    p95_us: Interval | None
    p99_us: Interval | None
    p99_9_us: Interval | None


@dataclass(frozen=True, slots=True)
class ServerSplit:
    """Where the server says that the time of a request went (means, in us), and the mean rows of one model run."""

    queue_us: float
    compute_input_us: float
    compute_infer_us: float
    compute_output_us: float
    mean_batch: float


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """The figures of one model at one level; `latency` is None when no request succeeded."""

    name: str
    requests: int
    requests_per_s: float
    inferences_per_s: float
    latency: LatencySummary | None
    errors: dict[str, int]  # kind -> requests
    server: ServerSplit | None
    slo_ms: float  # 0: none was given
    within_slo: int  # answers with a latency of at most slo_ms; 0 when none was given


@dataclass(frozen=True, slots=True)
class ClientsStatistics:
    """Of the short-lived clients of a stress test: mean and deviation of their mean latencies."""

    clients: int  # that had an answer
    mean_us: float
    deviation_us: float


@dataclass(frozen=True, slots=True)
class LevelStatistics:
    """The figures of one level; `latency` is None when no request succeeded."""

    duration_s: float
    requests: int
    requests_per_s: float
    inferences_per_s: float
    latency: LatencySummary | None
    errors: dict[str, int]  # kind -> requests
    client_cpu_cores: float
    client_bound: bool
    server: ServerSplit | None  # of all models together
    service: LatencySummary | None  # from the actual send; as `latency` in a closed loop
    delay: LatencySummary | None  # that the client added; None in a closed loop
    due_per_s: float  # requests whose intended time lies in the reported windows; 0 in a closed loop
    models: tuple[ModelStatistics, ...]
    clients: ClientsStatistics | None
    intervals: Intervals  # of requests_per_s, and of `latency`


@dataclass(frozen=True, slots=True, eq=False)
class LevelResult:
    """What was measured at one level, and what follows from it."""

    record: LevelRecord
    statistics: LevelStatistics


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the model that were measured."""

    url: str
    embedded: bool
    server_name: str
    server_version: str
    model: str
    model_version: str
    platform: str
    inputs: tuple[str, ...]  # "name DATATYPE [shape of one request]"
    binary: bool  # tensors travelled in binary, else as JSON numbers
    config: dict[str, Any] | None = None  # of the model, as the server tells it; None when it does not


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search for the highest load found."""

    goal: str  # in words: "p99 latency <= 20 ms", "99 % within 50 ms"
    found: Load | None  # the highest load that meets the goal; None when none did
    met: tuple[bool, ...]  # whether each level met it, in the order of the levels
    client_bound: bool  # in a level that missed it the load generator was the limit: the server may do more


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BenchResult:
    """A whole benchmark: the content of a result file."""

    schema_version: int = SCHEMA_VERSION
    efserve_version: str
    started_at: str  # ISO 8601, UTC
    machine: Machine
    config: dict[str, Any]  # the options, as given or by default
    target: Target
    levels: tuple[LevelResult, ...]
    interrupted: bool
    search: SearchOutcome | None = None


def encode_result(result: BenchResult) -> bytes:
    """JSON of a result: people read the figures, the raw arrays are packed by `pack`."""
    return msgspec.json.format(msgspec.json.encode(result, enc_hook=_encode_array), indent=1) + b"\n"


def read_result(path: Path) -> BenchResult:
    """The result in a file. Raises UsageError when it is no result file, or one of another schema version."""
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(f"{path}: result file has schema version {version}, this efserve reads {SCHEMA_VERSION}")
        return msgspec.json.decode(data, type=BenchResult, dec_hook=_decode_array)
    except OSError as exc:
        raise UsageError(f"{path}: cannot read it: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise UsageError(f"{path}: not a result file of `efserve bench`: {exc}") from exc


class _Versioned(msgspec.Struct):
    schema_version: int


def _encode_array(value: object) -> object:
    if isinstance(value, np.ndarray):
        return pack(value)
    raise NotImplementedError(f"no JSON form for {type(value).__name__}")


def _decode_array(kind: type, value: object) -> object:
    """`kind` is one of the aliases above: `ndarray[shape, dtype[scalar type]]`."""
    if not isinstance(value, str):
        raise ValueError(f"an array is kept as text, got {value!r}")
    (scalar,) = get_args(get_args(kind)[1])
    return unpack(value, scalar)


def machine_facts() -> Machine:
    """The facts of this machine that a figure depends on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu_model=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        python=platform.python_version(),
        libraries=libraries,
    )
