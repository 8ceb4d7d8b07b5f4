"""What a conversion is asked for and what it answers: plain values, shared by every module of the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efserve.precision import Difference, Format, Loss, Precision
from efserve.tensors import TensorSpec

FILENAMES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.pt"}
DEFAULT_MAX_BATCH = 8
DEFAULT_OPSET = 18  # known to every onnxruntime since 1.14 and to TensorRT 8.6


@dataclass(frozen=True, slots=True)
class ConvertJob:
    """One conversion, as the command line tells it. With `max_batch` 0 the model does not batch: shapes are whole."""

    source: str
    model_repository: Path = Path("model_dir")
    name: str = ""  # empty: the stem of the source, with `_<precision>` where that is not fp32
    version: int = 1
    format: Literal["onnx", "torchscript", "tensorrt", "all"] = "all"
    weights: str = "default"  # default, none, or a file
    precision: Precision = "fp32"
    calibration: str = ""  # a file or a folder of samples, for int8 and for what a precision loses
    opset: int | None = None  # None: DEFAULT_OPSET for PyTorch models; an ONNX file keeps its own
    input_shape: tuple[str, ...] = ()  # [name:]dims without the batch, in the order of the model's inputs
    dtype: tuple[str, ...] = ()  # [name:]datatype
    max_batch: int = DEFAULT_MAX_BATCH
    force: bool = False


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
    losses: tuple[Loss, ...]  # of a precision below fp32
    notes: tuple[str, ...]  # remarks that the user should read


OnStep = Callable[[str], None]  # told the name of each step as it begins
