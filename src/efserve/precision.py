"""What a model's files lost against their source when they were converted, and `parity.json`, which tells it."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from efserve.errors import ConfigError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Format = Literal["onnx", "torchscript"]
FILE = "parity.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one written file is from its source at one batch, over all outputs."""

    format: Format
    batch: int  # rows; 1 for a model that does not batch
    max_abs: float
    max_rel: float  # the absolute difference over the largest magnitude of the same output
    passed: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """How far a file of less precision is from its source over samples, by the model's first output."""

    format: Format
    engine: str  # that ran it
    samples: int
    inputs: str  # what the samples were
    max_abs: float
    mean_abs: float
    scale: float  # the largest magnitude of the source's answers
    top1_agreement: float | None  # part of the samples whose largest score is the same one; None: no scores

    @property
    def over(self) -> str:
        """What it was measured over, for people."""
        return f"{self.samples} sample{'' if self.samples == 1 else 's'} of {self.inputs}"


@dataclass(frozen=True, slots=True)
class Parity:
    """What `efserve convert` found out about the files that it wrote."""

    precision: Precision
    differences: tuple[Difference, ...]
    losses: tuple[Loss, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)  # of the files that this was found out about, by name
    schema_version: int = _SCHEMA


def write_parity(parity: Parity, version_folder: Path) -> None:
    """Writes `parity.json` beside the model's files, with their hashes."""
    import msgspec

    files = sorted(path for path in version_folder.iterdir() if path.is_file() and path.name != FILE)
    parity = replace(parity, sha256={path.name: _sha256(path) for path in files})
    (version_folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(parity), indent=2) + b"\n")


def read_parity(version_folder: Path) -> Parity | None:
    """What `parity.json` says; None where there is none. Raises ConfigError for one that cannot be read."""
    import msgspec

    path = version_folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Parity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}; convert the model again or delete the file") from exc


def describe(version_folder: Path) -> tuple[str, ...]:
    """What `parity.json` says of the files there, a sentence each; nothing where there is none. Raises ConfigError."""
    parity = read_parity(version_folder)
    if parity is None:
        return ()
    changed = [
        name
        for name, known in parity.sha256.items()
        if not (version_folder / name).is_file() or _sha256(version_folder / name) != known
    ]
    if changed:
        return (f"parity.json is not about this {changed[0]}, which has been replaced since",)
    worst = max((found.max_rel for found in parity.differences), default=0.0)
    summary = f"converted to {parity.precision}: at most {worst:.1e} from its source, relative to the largest value"
    return (summary, *map(loss_text, parity.losses))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def loss_text(loss: Loss) -> str:
    """One line: `onnx by openvino, 64 samples of photos: mean 1e-3, max 1e-2 of 10, top-1 the same in 99 %`."""
    classes = "" if loss.top1_agreement is None else f", top-1 the same in {loss.top1_agreement:.1%}"
    return (
        f"{loss.format} by {loss.engine}, {loss.over}: mean {loss.mean_abs:.2e}, "
        f"max {loss.max_abs:.2e} of {loss.scale:.3g}{classes}"
    )
