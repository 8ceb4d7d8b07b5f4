"""Profiles: what one model costs on one engine and device, a row for each (share, batch).

Owns the columns, the CSV file with the facts of its run beside it, and the choice of the best row. A row is written
whole or not at all: what a crash left of a line is dropped by the next reader. Measuring is `profiler.py`.
"""

import csv
import errno
import fcntl
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType

import msgspec

from efserve.errors import ConfigError, MeasurementFailed, UsageError

SCHEMA = 1
STEADY_CI_PCT = 2.0  # the median is known well enough
QUIET_OTHERS_PCT = 10.0  # what others may use of the machine while it counts as quiet


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One measurement; `docs/profile.md` gives each column as a formula.

    On a CPU `cores` cores are `share_pct` of the machine. Latencies are of one batch inside the worker, except
    `roundtrip_ms`; throughputs count inferences, that is rows; a megabyte is 10^6 bytes.
    """

    share_pct: float
    cores: int
    batch: int
    repetitions: int
    mean_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ci_pct: float
    roundtrip_ms: float
    throughput_per_s: float
    utilization_pct: float
    others_pct: float
    peak_memory_mb: float
    load_s: float
    ready_s: float

    @property
    def key(self) -> tuple[int, int]:
        """What a row is found by: (cores, batch)."""
        return (self.cores, self.batch)

    @property
    def is_steady(self) -> bool:
        """True when the median is known within STEADY_CI_PCT."""
        return self.ci_pct <= STEADY_CI_PCT

    @property
    def is_quiet(self) -> bool:
        """True when other processes left the machine alone while the row was measured."""
        return self.others_pct <= QUIET_OTHERS_PCT


COLUMNS = tuple(field.name for field in fields(ProfileRow))
_HEADER = (",".join(COLUMNS) + "\n").encode()
_NUMBERS = tuple(int if field.type is int else float for field in fields(ProfileRow))


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """The circumstances of a profile. Rows may stand in one file only where the first eleven are the same."""

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
    min_repetitions: int
    min_time_s: float
    efserve_version: str
    kernel: str
    python: str
    libraries: dict[str, str]
    measured_at: str  # wall time of the start, ISO 8601 with offset
    schema: int = SCHEMA


_COMPARED = tuple(field.name for field in fields(ProfileFacts))[:11]


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
    return (",".join([repr(value) for value in astuple(row)]) + "\n").encode()


def parse_rows(data: bytes, what: str) -> ParsedRows:
    """The rows in a profile's CSV; a last line without its newline is left out. `what` names the file in errors.

    Raises ConfigError where the columns are not `COLUMNS` or a whole line is not a row.
    """
    whole_bytes = data.rfind(b"\n") + 1
    if whole_bytes == 0 and _HEADER.startswith(data):
        return ParsedRows((), 0)
    if not data.startswith(_HEADER):
        first = data.split(b"\n", 1)[0][:200].decode("utf-8", "replace")
        raise ConfigError(f"{what} is no profile of this version: its first line is {first!r}, not {','.join(COLUMNS)}")
    lines = csv.reader(io.StringIO(data[len(_HEADER) : whole_bytes].decode("utf-8", "replace")))
    return ParsedRows(tuple(_parse_row(line, f"{what}, line {at}") for at, line in enumerate(lines, 2)), whole_bytes)


def _parse_row(line: Sequence[str], what: str) -> ProfileRow:
    try:
        values = [number(text) for number, text in zip(_NUMBERS, line, strict=True)]
    except ValueError as exc:
        raise ConfigError(f"{what}: {','.join(line)!r} is not a row of {len(COLUMNS)} numbers") from exc
    return ProfileRow(*values)  # type: ignore[arg-type]  # each value was made by its own field's type


def read_profile(csv_path: Path) -> Profile:
    """The profile in `csv_path` and the facts beside it. Raises ConfigError where either is missing or broken."""
    try:
        data = csv_path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read profile {csv_path}: {exc.strerror}; `efserve profile` makes one") from exc
    return Profile(_read_facts(facts_path(csv_path)), parse_rows(data, str(csv_path)).rows)


def _read_facts(path: Path) -> ProfileFacts:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProfileFacts)
    except OSError as exc:
        raise ConfigError(f"cannot read the facts of a profile, {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path} does not hold the facts of a profile: {exc}") from exc


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
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
        beside = path.with_suffix(".json.part")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
        beside.replace(path)


def best_by_throughput(rows: Iterable[ProfileRow]) -> ProfileRow | None:
    """The row of most throughput; of equals the one with the smaller share, then the lower p99. None without rows."""
    return max(rows, key=lambda row: (row.throughput_per_s, -row.share_pct, -row.p99_ms), default=None)


def best_under_slo(rows: Iterable[ProfileRow], slo_ms: float) -> ProfileRow | None:
    """The row of most throughput among those with p99_ms <= slo_ms; None when there is none."""
    return best_by_throughput(row for row in rows if row.p99_ms <= slo_ms)
