"""The steps of a conversion: load the source, export, check parity, install. Each step's work has its own module."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efserve.converter.config_text import config_text
from efserve.converter.install import install, staging
from efserve.converter.job import DEFAULT_OPSET, FILENAMES, ConvertJob, ConvertResult, Difference, Format, OnStep
from efserve.converter.onnx_file import read_onnx, save
from efserve.converter.parity import Case, check
from efserve.devices.cpu import usable_cores_here
from efserve.engines.base import Source, load
from efserve.errors import ConfigError, ConversionFailed, UsageError
from efserve.foreign import foreign
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.partition import Partition
from efserve.pbtxt import read_config

if TYPE_CHECKING:
    from efserve.converter.torch_model import TorchModel

_LABELS = "labels.txt"
_TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")


@dataclass(frozen=True, slots=True)
class _Conversion:
    """A source understood: what its files shall be, how to write each, and what they must answer."""

    config: ModelConfig  # complete
    exports: dict[Format, Callable[[Path], None]]
    cases: tuple[Case, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(job: ConvertJob, on_step: OnStep) -> ConvertResult:
    """Converts `job.source` into the model repository, checked, or leaves the repository as it was.

    Raises UsageError for what the job asks wrongly, ConversionFailed where a step or the parity check fails.
    """
    folder = _model_folder(job)
    if job.source.endswith(".onnx"):
        on_step(f"Load {job.source}")
        return _write(_from_onnx(job, folder.name), job, folder, on_step)
    if importlib.util.find_spec("torch") is None:
        raise ConversionFailed(f"converting '{job.source}' needs PyTorch: pip install 'efserve[torch]'")
    on_step(f"Load {job.source}")
    return convert_torch(_load_torch(job), job, on_step)


def convert_torch(model: "TorchModel", job: ConvertJob, on_step: OnStep) -> ConvertResult:
    """Converts a PyTorch model that is already loaded, under the job's name; errors as in `convert`."""
    from efserve.converter import torch_export, torch_model

    folder = _model_folder(job)
    on_step("Run the source model")
    cases = torch_model.eager_cases(model, job)
    ready = torch_model.exportable(model, job)
    config = ModelConfig(
        folder.name,
        max_batch_size=job.max_batch,
        inputs=ready.inputs,
        outputs=ready.outputs,
        dynamic_batching=DynamicBatching() if job.max_batch else None,
        label_filenames={ready.outputs[0].name: _LABELS} if model.labels else {},
        parameters=model.parameters,
    )
    exports: dict[Format, Callable[[Path], None]] = {
        "onnx": lambda path: torch_export.export_onnx(ready, path, job.opset or DEFAULT_OPSET),
        "torchscript": lambda path: torch_export.export_torchscript(ready, path),
    }
    wanted = {name: export for name, export in exports.items() if job.format in (name, "all")}
    return _write(_Conversion(config, wanted, cases, model.labels, model.notes), job, folder, on_step)


def _load_torch(job: ConvertJob) -> "TorchModel":
    from efserve.converter import torch_sources, torchvision_zoo

    if _is_path(job.source):
        return torch_sources.load_torchscript(_file(job.source), job)
    if ":" in job.source:
        return torch_sources.load_callable(job.source, job)
    return torchvision_zoo.load_zoo_model(job.source, job)


def _from_onnx(job: ConvertJob, name: str) -> _Conversion:
    if job.format == "torchscript":
        raise UsageError("an ONNX file cannot become TorchScript; convert the PyTorch model, or use --format onnx")
    if job.weights != "default" or job.dtype:
        raise UsageError("--weights and --dtype are for PyTorch models; an ONNX file brings its own")
    model = read_onnx(_file(job.source), name, job)
    batching = DynamicBatching() if model.config.batches else None
    config = replace(model.config, default_model_filename="", dynamic_batching=batching)
    notes = ("an ONNX file cannot become TorchScript: only model.onnx is written",) if job.format == "all" else ()
    return _Conversion(config, {"onnx": lambda path: save(model.file, path)}, model.cases, notes=notes + model.notes)


def _write(conversion: _Conversion, job: ConvertJob, folder: Path, on_step: OnStep) -> ConvertResult:
    """Writes and checks every format beside the model's folder, and moves them into it when all are right."""
    keeps_config = _keeps_config(conversion.config, folder, job)
    with staging(folder) as stage:
        staged = stage / folder.name
        version = staged / str(job.version)
        version.mkdir(parents=True)
        for file_format, export in conversion.exports.items():
            on_step(f"Write {FILENAMES[file_format]}")
            export(version / FILENAMES[file_format])
        parity: list[Difference] = []
        for file_format in conversion.exports:
            on_step(f"Compare {FILENAMES[file_format]} with the source")
            parity += _check(file_format, version, conversion, job)
        if not keeps_config:
            (staged / "config.pbtxt").write_text(config_text(conversion.config), encoding="utf-8")
        if conversion.labels and (job.force or not (folder / _LABELS).exists()):
            (staged / _LABELS).write_text("\n".join(conversion.labels) + "\n", encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(version.iterdir()) if path.is_file()}
        install(staged, folder, job.version)
    return ConvertResult(
        name=folder.name,
        version=job.version,
        folder=job.model_repository / folder.name / str(job.version),
        file_bytes=sizes,
        inputs=conversion.config.inputs,
        outputs=conversion.config.outputs,
        max_batch_size=conversion.config.max_batch_size,
        precision=job.precision,
        parity=tuple(parity),
        notes=conversion.notes + tuple(_remarks(conversion.cases, keeps_config)),
    )


def _remarks(cases: tuple[Case, ...], keeps_config: bool) -> Iterator[str]:
    if keeps_config:
        yield "config.pbtxt was there and fits: it is kept"
    if not any(np.any(output) for case in cases for output in case.outputs):
        yield "the source answers nothing but zeros, so the comparison says little"


def _check(file_format: Format, version: Path, conversion: _Conversion, job: ConvertJob) -> tuple[Difference, ...]:
    """Runs the file in the engine that will serve it, with the config that it will have."""
    source = Source(version, conversion.config, Partition(threads=usable_cores_here()))
    with foreign(f"{FILENAMES[file_format]} was written, but it cannot be run", ConversionFailed):
        engine = load(file_format, source)
        try:
            return check(file_format, engine.infer, conversion.cases, job.precision)
        finally:
            engine.close()


def _keeps_config(config: ModelConfig, folder: Path, job: ConvertJob) -> bool:
    """True when the model has a config that fits, and keeps it; raises ConfigError for another, unless forced."""
    path = folder / "config.pbtxt"
    if not path.is_file():
        return False
    try:
        old = read_config(path, folder.name)
    except ConfigError:
        if job.force:
            return False
        raise
    tensors = (old.inputs, old.outputs, old.batches) == (config.inputs, config.outputs, config.batches)
    fits = tensors and config.parameters.items() <= old.parameters.items()
    if not fits and not job.force:
        what = "preprocessing" if tensors else "tensors"
        raise ConfigError(f"{path} describes other {what} than this model's; choose another --name, or --force")
    return fits


def _model_folder(job: ConvertJob) -> Path:
    """The model's folder; raises UsageError for a name that cannot be one, or a version that is taken."""
    name = job.name or _stem(job.source)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(f"'{name}' cannot be a model's name; give letters, digits, '_', '-' and '.' with --name")
    folder = (job.model_repository / name).resolve()
    version = folder / str(job.version)
    if version.exists() and not job.force:
        raise UsageError(f"{version} exists; choose another --version or --name, or replace it with --force")
    return folder


def _stem(source: str) -> str:
    return Path(source).stem if _is_path(source) else source.rpartition(":")[2]


def _is_path(source: str) -> bool:
    return source.endswith((".onnx", *_TORCHSCRIPT_SUFFIXES)) or "/" in source or Path(source).is_file()


def _file(source: str) -> Path:
    if not Path(source).is_file():
        raise UsageError(f"SOURCE '{source}' is no file; expected an existing .pt or .onnx file")
    return Path(source)
