"""Result files of `efserve bench`: what was measured, raw records first, and the statistics made from them.

Owns the values, their JSON form and the facts of the machine. The statistics are computed by `stats.py`, from a
`LevelRecord` alone, so that every figure of a file can be made again from the same file.
"""

import base64
import os
import platform
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from efserve.errors import UsageError

SCHEMA_VERSION = 1
LIBRARIES = ("numpy", "uvloop", "httptools", "onnxruntime", "torch")

Micros = npt.NDArray[np.int64]  # [n] whole microseconds


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that measured: no names of hosts or users."""

    cpu_model: str
    cores: int  # that this process may use
    memory_bytes: int
    kernel: str
    python: str
    libraries: dict[str, str]  # name -> version, of those installed


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """The successful requests of a level in the order in which they ended, in us since its first window began."""

    end_us: Micros  # ascending
    latency_us: Micros


@dataclass(frozen=True, slots=True, eq=False)
class Failures:
    """The failed requests of one kind: `http 503`, `timeout`, `closed`, ..."""

    kind: str
    text: str  # what the server or the system said the first time
    end_us: Micros  # ascending


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a level, and the CPU time that the load generator's process used in it."""

    start_us: int
    end_us: int
    client_cpu_us: int


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

    concurrency: int
    rows_per_request: int
    windows: tuple[Window, ...]  # contiguous, from 0 us on
    reported: int
    stable: bool
    reason: str  # why the level is not stable
    requests: Requests
    failures: tuple[Failures, ...]
    server: ServerCounters | None  # over all windows; None when the server has no statistics


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
class ServerSplit:
    """Where the server says that the time of a request went (means, in us), and the mean rows of one model run."""

    queue_us: float
    compute_input_us: float
    compute_infer_us: float
    compute_output_us: float
    mean_batch: float


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
    server: ServerSplit | None


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


def encode_result(result: BenchResult) -> bytes:
    """JSON of a result: people read the figures, the raw arrays are packed by `pack`."""
    return msgspec.json.format(msgspec.json.encode(result, enc_hook=_encode_array), indent=1) + b"\n"


def write_result(result: BenchResult, path: Path) -> None:
    """Write a result file, folders included; an interrupted write leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(encode_result(result))
    beside.replace(path)


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


def pack(values: Micros) -> str:
    """Values as text: base64 of the zlib stream of little-endian int64, low bytes of all values first.

    That order puts the high bytes, which are all alike, side by side: it makes the text half as long.
    """
    planes = values.astype("<i8").view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


def unpack(text: str) -> Micros:
    """The values that `pack` wrote; ValueError when the text is something else."""
    try:
        planes = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except zlib.error as exc:
        raise ValueError(f"not a zlib stream: {exc}") from exc
    return np.ascontiguousarray(planes.reshape(8, -1).T).view("<i8").reshape(-1).astype(np.int64)


def _encode_array(value: object) -> object:
    if isinstance(value, np.ndarray):
        return pack(value)
    raise NotImplementedError(f"no JSON form for {type(value).__name__}")


def _decode_array(kind: type, value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"{kind.__name__} is kept as text, got {value!r}")
    return unpack(value)


def machine_facts() -> Machine:
    """The facts of this machine that a figure depends on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu_model=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        python=platform.python_version(),
        libraries=libraries,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
