"""Profiles: what one model costs on one engine and device, a row for each (share, batch).

Owns the columns, the CSV file with the facts of its run beside it, and the choice of the best row. A row is written
whole or not at all: what a crash left of a line is dropped by the next reader. Measuring is `profiler.py`.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from efserve import files
from efserve.errors import ConfigError, MeasurementFailed, UsageError

SCHEMA = 2
STEADY_CI_PCT = 2.0  # the median is known well enough
QUIET_OTHERS_PCT = 10.0  # what others may use of the machine while it counts as quiet
KNEE_GAIN = 0.5  # what a percent beyond the knee brings at most, of what a percent of the best share brings
NOT_THROTTLED = "none"  # in the column `throttle`; the column is empty where nothing tells


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One measurement; `docs/profile.md` gives each column as a formula.

    On a CPU `cores` cores are `share_pct` of the machine; on a GPU they are the host's, beside the share. Latencies are
    of one batch inside the worker, except `roundtrip_ms` and `first_ms`; throughputs count inferences, that is rows; a
    megabyte is 10^6 bytes. None is a figure that cannot be had here, and an empty field of the file.
    """

    share_pct: float
    cores: int
    sm_count: int | None
    batch: int
    repetitions: int
    mean_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ci_pct: float
    device_ms: float | None
    roundtrip_ms: float
    throughput_per_s: float
    utilization_pct: float
    gpu_util_pct: float | None
    sm_util_pct: float | None
    dram_util_pct: float | None
    others_pct: float
    peak_memory_mb: float
    device_memory_mb: float | None
    clock_start_mhz: float | None
    clock_end_mhz: float | None
    throttle: str
    ready_s: float
    load_s: float
    first_ms: float

    @property
    def key(self) -> tuple[float, int]:
        """What a row is found by: (share_pct, batch)."""
        return (self.share_pct, self.batch)

    @property
    def is_steady(self) -> bool:
        """True when the median is known within STEADY_CI_PCT."""
        return self.ci_pct <= STEADY_CI_PCT

    @property
    def is_quiet(self) -> bool:
        """True when other processes left the machine alone while the row was measured."""
        return self.others_pct <= QUIET_OTHERS_PCT

    @property
    def is_throttled(self) -> bool:
        """True when something held the device's clock down, or the processor back, while the row was measured."""
        return self.throttle not in ("", NOT_THROTTLED)


COLUMNS = tuple(field.name for field in fields(ProfileRow))
_HEADER = (",".join(COLUMNS) + "\n").encode()
_KINDS = tuple(field.type for field in fields(ProfileRow))
_BEFORE = b"share_pct,cores,batch,"  # how the header of schema 1 begins


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """The circumstances of a profile. Rows may stand in one file only where the first fourteen are the same."""

    model: str
    version: str
    engine: str
    engine_version: str
    model_file: str
    model_sha256: str
    inputs: dict[str, str]  # input -> datatype and shape that was run, such as "FP32 [batch,1,8,8]"
    device: str
    cpu_model: str
    total_cores: int
    threads: str  # how many engine threads a share gets
    share_means: str  # cores; on a GPU mps, green (contexts) or "whole device"
    gpu: str  # its name; empty on a CPU
    driver: str  # of the GPU
    min_repetitions: int
    min_time_s: float
    efserve_version: str
    kernel: str
    python: str
    libraries: dict[str, str]
    measured_at: str  # wall time of the start, ISO 8601 with offset
    schema: int = SCHEMA


_COMPARED = tuple(field.name for field in fields(ProfileFacts))[:14]


@dataclass(frozen=True, slots=True)
class _Schema:
    """What is read of facts before anything else."""

    schema: int = 1


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as its two files tell it."""

    facts: ProfileFacts
    rows: tuple[ProfileRow, ...]


@dataclass(frozen=True, slots=True)
class ParsedRows:
    """The whole rows of a CSV file, and where they end."""

    rows: tuple[ProfileRow, ...]
    whole_bytes: int  # what follows is the torn rest of a line


def profile_path(root: Path, device: str, model: str, engine: str) -> Path:
    """Where the CSV file of a profile lies; its facts lie beside it with the ending `.json`."""
    return root / device / f"{model}.{engine}.csv"


def facts_path(csv_path: Path) -> Path:
    """Where the facts of the profile at `csv_path` lie."""
    return csv_path.with_suffix(".json")


def row_line(row: ProfileRow) -> bytes:
    """The row as a line of the file; reading it gives exactly the same numbers."""
    return (",".join([_text(value) for value in astuple(row)]) + "\n").encode()


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def parse_rows(data: bytes, what: str) -> ParsedRows:
    """The rows in a profile's CSV; a last line without its newline is left out. `what` names the file in errors.

    Raises ConfigError where the columns are not `COLUMNS` or a whole line is not a row.
    """
    whole_bytes = data.rfind(b"\n") + 1
    if whole_bytes == 0 and _HEADER.startswith(data):
        return ParsedRows((), 0)
    if not data.startswith(_HEADER):
        if data.startswith(_BEFORE):
            raise ConfigError(_of_another_schema(what, 1))
        if data.startswith(_HEADER[:-1] + b"\r\n"):
            raise ConfigError(f"{what} has lines that end as in Windows; `sed -i 's/\\r$//' {what}` mends it")
        first = data.split(b"\n", 1)[0][:200].decode("utf-8", "replace")
        raise ConfigError(f"{what} is no profile of this version: its first line is {first!r}, not {','.join(COLUMNS)}")
    lines = data[len(_HEADER) : whole_bytes].decode("utf-8", "replace").split("\n")[:-1]
    rows = [_parse_row(line.split(","), f"{what}, line {at}") for at, line in enumerate(lines, 2)]
    return ParsedRows(tuple(rows), whole_bytes)


def _parse_row(line: Sequence[str], what: str) -> ProfileRow:
    if len(line) != len(COLUMNS):
        raise ConfigError(f"{what}: {','.join(line)!r} is not a row of the {len(COLUMNS)} columns")
    values: list[float | str | None] = []
    for column, kind, text in zip(COLUMNS, _KINDS, line, strict=True):
        try:
            values.append(_value(kind, text))
        except ValueError as exc:
            wanted = "a whole number" if kind in (int, int | None) else "a number"
            raise ConfigError(f"{what}: {column} is {text!r}, not {wanted}") from exc
    return ProfileRow(*values)  # type: ignore[arg-type]  # each value was made by its own field's type


def _value(kind: Any, text: str) -> float | str | None:
    """What a field of this type says in the file; ValueError where it cannot say that."""
    if kind is str:
        return text
    if not text and kind in (int | None, float | None):
        return None
    return int(text) if kind in (int, int | None) else float(text)


def read_profile(csv_path: Path) -> Profile:
    """The profile in `csv_path` and the facts beside it. Raises ConfigError where either is missing or broken."""
    try:
        data = csv_path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read profile {csv_path}: {exc.strerror}; `efserve profile` makes one") from exc
    return Profile(_read_facts(facts_path(csv_path)), parse_rows(data, str(csv_path)).rows)


def _read_facts(path: Path) -> ProfileFacts:
    try:
        data = path.read_bytes()
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            raise ConfigError(_of_another_schema(str(path), schema))
        return msgspec.json.decode(data, type=ProfileFacts)
    except OSError as exc:
        raise ConfigError(f"cannot read the facts of a profile, {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path} does not hold the facts of a profile: {exc}") from exc


def _of_another_schema(what: str, schema: int) -> str:
    age = "an older" if schema < SCHEMA else "a newer"
    return (
        f"{what} is of {age} efserve: schema {schema}, this one reads {SCHEMA}; `efserve profile --force` measures the "
        "model again"
    )


def differences(before: ProfileFacts, now: ProfileFacts) -> list[str]:
    """Why rows taken under `before` and `now` may not stand in one file; empty when they may."""
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in _COMPARED]
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in pairs if old != new]


class ProfileFile:
    """The CSV file of one profile, open for more rows and locked against other writers.

    A context manager: `with ProfileFile(path) as file`, then `start` or `resume`, then `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: tuple[ProfileRow, ...] = ()
        self.facts: ProfileFacts | None = None  # that the rows were taken under; None before start or resume
        self._fd = -1

    def __repr__(self) -> str:
        return f"ProfileFile({str(self.path)!r}, rows={len(self.rows)}, open={self._fd >= 0})"

    def __enter__(self) -> "ProfileFile":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as exc:
            raise UsageError(f"cannot write {self.path}: {exc.strerror}; name another folder with --output") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            raise UsageError(f"{self.path} is being written by another process; wait for it or end it") from exc
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._fd = -1

    def start(self, facts: ProfileFacts) -> None:
        """Begin afresh under these facts; rows that were there are gone."""
        self._cut(0)  # first, so that old rows never stand beside new facts
        self._write_facts(facts)
        self._write(_HEADER)
        self.rows, self.facts = (), facts

    def resume(self, facts: ProfileFacts) -> str:
        """Keep the rows that are there, and say what was dropped ("" when nothing was).

        Raises UsageError where the rows were taken under other facts: another model file, engine or machine.
        """
        data = self.path.read_bytes()
        parsed = parse_rows(data, str(self.path))
        if parsed.rows:
            before = _read_facts(facts_path(self.path))
            changed = differences(before, facts)
            if changed:
                raise UsageError(f"cannot resume {self.path}: {'; '.join(changed)}; --force measures it afresh")
            self._cut(parsed.whole_bytes)
            self.rows, self.facts = parsed.rows, before
        else:
            self.start(facts)
        torn_bytes = len(data) - parsed.whole_bytes
        return f"{self.path}: dropped a half-written last row ({torn_bytes} bytes)" if torn_bytes else ""

    def append(self, row: ProfileRow) -> None:
        """Add a row and wait until it is on the disk."""
        self._write(row_line(row))
        self.rows = (*self.rows, row)

    def _write(self, line: bytes) -> None:
        size_bytes = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as exc:
            self._cut(size_bytes)
            raise MeasurementFailed(f"cannot write a row to {self.path}: {exc.strerror}") from exc

    def _cut(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)
        os.fsync(self._fd)

    def _write_facts(self, facts: ProfileFacts) -> None:
        path = facts_path(self.path)
        try:
            files.replace(path, msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
        except OSError as exc:
            raise MeasurementFailed(f"cannot write {path}: {exc.strerror}") from exc


def best_by_throughput(rows: Iterable[ProfileRow]) -> ProfileRow | None:
    """The row of most throughput; of equals the one with the smaller share, then the lower p99. None without rows."""
    return max(rows, key=lambda row: (row.throughput_per_s, -row.share_pct, -row.p99_ms), default=None)


def best_under_slo(rows: Iterable[ProfileRow], slo_ms: float) -> ProfileRow | None:
    """The row of most throughput among those with p99_ms <= slo_ms; None when there is none."""
    return best_by_throughput(row for row in rows if row.p99_ms <= slo_ms)


@dataclass(frozen=True, slots=True)
class Knees:
    """Where more of the device stops paying: of each batch, and of the model with the best batch on each share."""

    share_pct: float
    by_batch: dict[int, float]


def knees(rows: Sequence[ProfileRow]) -> Knees | None:
    """The knees of a profile; None with fewer than two shares, of which there is none to choose."""
    batches = sorted({row.batch for row in rows})
    by_batch = {batch: knee_pct([row for row in rows if row.batch == batch]) for batch in batches}
    share_pct = knee_pct(rows)
    if share_pct is None:
        return None
    return Knees(share_pct, {batch: pct for batch, pct in by_batch.items() if pct is not None})


def knee_pct(rows: Iterable[ProfileRow]) -> float | None:
    """The smallest share beyond which no larger one gains, per percent, half of what the best share has per percent.

    With T(s) the throughput at share s: the smallest s with (T(t) - T(s)) / (t - s) < KNEE_GAIN * max_u T(u) / u for
    every t > s. It looks at all larger shares, so that one noisy step does not end it. None with fewer than two shares.
    """
    rates: dict[float, float] = {}
    for row in rows:
        rates[row.share_pct] = max(row.throughput_per_s, rates.get(row.share_pct, 0.0))
    if len(rates) < 2:
        return None
    points = sorted(rates.items())
    least_per_pct = KNEE_GAIN * max(rate / share for share, rate in points)
    return next(
        share
        for at, (share, rate) in enumerate(points)
        if all(more - rate < least_per_pct * (larger - share) for larger, more in points[at + 1 :])
    )
