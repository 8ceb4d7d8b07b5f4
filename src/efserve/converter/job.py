"""What a conversion is asked for and what it answers: plain values, shared by every module of the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efserve.tensors import TensorSpec

Format = Literal["onnx", "torchscript"]
Precision = Literal["fp32", "fp16"]

FILENAMES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.pt"}
DEFAULT_MAX_BATCH = 8
DEFAULT_OPSET = 18  # known to every onnxruntime since 1.14 and to TensorRT 8.6


@dataclass(frozen=True, slots=True)
class ConvertJob:
    """One conversion, as the command line tells it. With `max_batch` 0 the model does not batch: shapes are whole."""

    source: str
    model_repository: Path = Path("model_dir")
    name: str = ""  # empty: the stem of the source
    version: int = 1
    format: Literal["onnx", "torchscript", "all"] = "all"
    weights: str = "default"  # default, none, or a file
    precision: Precision = "fp32"
    opset: int | None = None  # None: DEFAULT_OPSET for PyTorch models; an ONNX file keeps its own
    input_shape: tuple[str, ...] = ()  # [name:]dims without the batch, in the order of the model's inputs
    dtype: tuple[str, ...] = ()  # [name:]datatype
    max_batch: int = DEFAULT_MAX_BATCH
    force: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one written format is from its source at one batch, over all outputs."""

    format: Format
    batch: int  # rows; 1 for a model that does not batch
    max_abs: float
    max_rel: float  # the absolute difference over the largest magnitude of the same output
    passed: bool


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was written, and how it compares with the source."""

    name: str
    version: int
    folder: Path  # the version folder
    file_bytes: dict[str, int]  # file name -> size
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    precision: Precision
    parity: tuple[Difference, ...]
    notes: tuple[str, ...]  # remarks that the user should read


OnStep = Callable[[str], None]  # told the name of each step as it begins
