"""What a TensorRT plan was built of, and the key that it is kept under. Pure.

A plan runs only on the kind of GPU and with the version of TensorRT that built it, so both are part of the key, with
everything that decides what is in it: the model file's bytes, the precision and the ranges of shapes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from efserve.engines.shape_ranges import ShapeRange
from efserve.errors import ConfigError
from efserve.model_config import ModelConfig

Precision = Literal["fp32", "fp16", "bf16", "int8"]

PARAMETER = "precision"  # of config.pbtxt
_CHUNK_BYTES = 1 << 20
_KEY_DIGITS = 16
_NOT_WEIGHTS = (".pt", ".py", ".plan", ".txt", ".json", ".pbtxt")  # beside model.onnx, of other engines or for people


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a plan runs: the kind of GPU and the library."""

    gpu: str  # "NVIDIA H200"
    compute_capability: str  # "9.0"
    tensorrt: str  # "10.13.0"

    def __str__(self) -> str:
        return f"{self.gpu} (compute capability {self.compute_capability}) with TensorRT {self.tensorrt}"


@dataclass(frozen=True, slots=True)
class Build:
    """Everything that decides what is in a plan."""

    machine: Machine
    precision: Precision
    onnx_sha256: str
    ranges: tuple[ShapeRange, ...]

    @property
    def key(self) -> str:
        """Equal for two builds exactly when their plans are the same."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    def record(self) -> str:
        """The build for people and scripts, as JSON."""
        return json.dumps({"schema_version": 1, **asdict(self)}, indent=2)


def precision_of(config: ModelConfig) -> Precision:
    """The precision that the config asks for; ConfigError for an unknown one."""
    text = config.parameters.get(PARAMETER, "fp32")
    for precision in get_args(Precision):
        if text == precision:
            found: Precision = precision
            return found
    raise ConfigError(
        f"config of '{config.name}': parameter {PARAMETER} is '{text}', expected one of "
        f"{', '.join(get_args(Precision))}"
    )


def files_sha256(onnx_file: Path) -> str:
    """Hash of a model file and of what may hold its weights: all else in its folder that is not known to be other."""
    digest = hashlib.sha256()
    for path in (onnx_file, *_weights(onnx_file)):
        digest.update(path.name.encode() if path != onnx_file else b"")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _weights(onnx_file: Path) -> Iterator[Path]:
    for path in sorted(onnx_file.parent.iterdir()):
        is_other = path.suffix in (*_NOT_WEIGHTS, ".onnx") or path.name.startswith(".")
        if path.is_file() and not is_other:
            yield path


def cannot_load(path: Path, machine: Machine, said: str) -> str:
    """Why a plan that the user names does not load here: TensorRT's own words, and what must be the same."""
    reason = f": {said}" if said else ""
    return (
        f"TensorRT cannot load {path.name}{reason}. A plan runs only on the kind of GPU and with the version of "
        f"TensorRT that built it; this is {machine}. Build one here from the ONNX file: efserve serve --trt"
    )


def cannot_parse(path: Path, errors: list[tuple[str, str, str]]) -> str:
    """Why a model cannot be built: operator, node and reason of the first error, and how many more there are."""
    if not errors:
        return f"TensorRT cannot parse {path.name} and does not say why"
    operator, node, reason = errors[0]
    where = f"operator {operator}" if operator else "the graph"
    if node:
        where += f" (node '{node}')"
    more = f"; {len(errors) - 1} more errors" if len(errors) > 1 else ""
    return (
        f"TensorRT cannot parse {path.name}: {where}: {' '.join(reason.split())}{more}. "
        "Serve it with --engine onnx, or export it without that operator"
    )
