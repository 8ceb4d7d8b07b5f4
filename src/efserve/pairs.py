"""Measured pairs: how much slower each of two models is beside the other on one device, as a file of their own.

Owns the values and the JSON file, of which `efserve plan --interference` reads `loads` and `pairs`. The file is
replaced whole with each pair that is added, so that it is never torn. Measuring is `profiler/pair_runs.py`.
"""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import msgspec

from efserve import files
from efserve.errors import ConfigError, MeasurementFailed, UsageError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class MeasuredPair:
    """`me` in batches of `my_batch` on `my_pct` of the device took `slowdown` times as long beside `you` as alone.

    Both sides never paused. Rates are in rows per second, medians over the rounds; `low` and `high` are the quartiles
    of the rounds' slowdowns.
    """

    me: str
    my_pct: float
    my_batch: int
    you: str
    your_pct: float
    your_batch: int
    slowdown: float
    low: float
    high: float
    cpu_slowdown: float | None  # in processor time of a batch; None on a GPU
    rounds: int
    alone_per_s: float
    beside_per_s: float
    alone_p99_ms: float  # of a batch inside the worker
    beside_p99_ms: float
    others_pct: float  # of the machine, used by other processes meanwhile

    @property
    def key(self) -> tuple[str, float, int, str, float, int]:
        """What it is found by."""
        return (self.me, self.my_pct, self.my_batch, self.you, self.your_pct, self.your_batch)


@dataclass(frozen=True, slots=True)
class Load:
    """What a model asks of the memory system, each 0..1; 0 where it is not known."""

    l2: float = 0.0
    dram: float = 0.0


@dataclass(frozen=True, slots=True)
class PairModel:
    """What one of the models was."""

    version: str
    engine: str
    engine_version: str
    model_sha256: str
    inputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class PairFacts:
    """The circumstances of measured pairs. Pairs may stand in one file only where the first seven are the same."""

    device: str
    cpu_model: str
    total_cores: int
    share_means: str
    gpu: str
    driver: str
    threads: str
    models: dict[str, PairModel]
    min_time_s: float
    efserve_version: str
    kernel: str
    python: str
    libraries: dict[str, str]
    measured_at: str  # wall time of the start, ISO 8601 with offset


_COMPARED = ("device", "cpu_model", "total_cores", "share_means", "gpu", "driver", "threads")


@dataclass(frozen=True, slots=True)
class Pairs:
    """The file's content."""

    facts: PairFacts
    loads: dict[str, Load]
    pairs: tuple[MeasuredPair, ...]
    schema: int = SCHEMA


def pairs_path(root: Path, device: str) -> Path:
    """Where the pairs of a device lie."""
    return root / device / "pairs.json"


def read_pairs(path: Path) -> Pairs:
    """The pairs in a file. Raises ConfigError where it cannot be read or is of another kind."""
    try:
        pairs = msgspec.json.decode(path.read_bytes(), type=Pairs)
    except OSError as exc:
        raise ConfigError(f"cannot read pairs {path}: {exc.strerror}; `efserve profile --pairs` measures them") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path} does not hold pairs that `efserve profile --pairs` measured: {exc}") from exc
    if pairs.schema != SCHEMA:
        raise ConfigError(f"{path} is of schema {pairs.schema}, this efserve reads {SCHEMA}; --force measures it again")
    return pairs


def differences(before: PairFacts, now: PairFacts) -> list[str]:
    """Why pairs taken under `before` and `now` may not stand in one file; models in one of them only are no reason."""
    changed = [(name, getattr(before, name), getattr(now, name)) for name in _COMPARED]
    for name in sorted(before.models.keys() & now.models.keys()):
        old, new = before.models[name], now.models[name]
        of_model = ("version", "engine", "engine_version", "model_sha256", "inputs")
        changed += [(f"{field} of {name}", getattr(old, field), getattr(new, field)) for field in of_model]
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in changed if old != new]


class PairsFile:
    """The file of a device's pairs while more are measured, locked against other writers. A context manager."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        """`keep` goes on with the pairs that are there; else they are dropped with the first that is added."""
        self.path = path
        self.content: Pairs | None = None
        self._keep = keep
        self._fd = -1

    def __repr__(self) -> str:
        return f"PairsFile({str(self.path)!r}, pairs={len(self.content.pairs) if self.content else 0})"

    def __enter__(self) -> "PairsFile":
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as exc:
            raise UsageError(f"cannot write to {folder}: {exc.strerror}; name another folder with --output") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.content = read_pairs(self.path) if self._keep and self.path.exists() else None
        except BlockingIOError as exc:
            os.close(fd)
            raise UsageError(f"{self.path} is being written by another process; wait for it or end it") from exc
        except ConfigError:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._fd = -1

    def describe(self, facts: PairFacts) -> None:
        """Tell under which facts pairs are measured now. Raises UsageError where those that are there were not."""
        if self.content is None:
            self.content = Pairs(facts, dict.fromkeys(facts.models, Load()), ())
            return
        before = self.content.facts
        if changed := differences(before, facts):
            raise UsageError(f"cannot resume {self.path}: {'; '.join(changed)}; --force measures it afresh")
        loads = {**dict.fromkeys(facts.models, Load()), **self.content.loads}
        models = {**before.models, **facts.models}
        self.content = replace(self.content, facts=replace(before, models=models), loads=loads)

    def has(self, keys: Sequence[tuple[object, ...]]) -> bool:
        """True when all of these pairs have been measured."""
        there = {pair.key for pair in self.content.pairs} if self.content else set()
        return there.issuperset(keys)

    def add(self, pairs: Sequence[MeasuredPair]) -> None:
        """Add pairs, in place of any of the same keys, and wait until they are on the disk."""
        assert self.content is not None
        new = {pair.key: pair for pair in pairs}
        kept = [pair for pair in self.content.pairs if pair.key not in new]
        self._write(replace(self.content, pairs=(*kept, *new.values())))

    def set_load(self, model: str, load: Load) -> None:
        """Note what a model asks of the memory system."""
        assert self.content is not None
        self._write(replace(self.content, loads={**self.content.loads, model: load}))

    def _write(self, content: Pairs) -> None:
        try:
            files.replace(self.path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        except OSError as exc:
            raise MeasurementFailed(f"cannot write {self.path}: {exc.strerror}") from exc
        self.content = content
