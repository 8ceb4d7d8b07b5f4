"""The steps of a conversion: load the source, export, check parity, install. Each step's work has its own module."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efserve.converter import loss
from efserve.converter.config_text import config_text
from efserve.converter.install import install, staging
from efserve.converter.job import DEFAULT_OPSET, FILENAMES, ConvertJob, ConvertResult, OnStep
from efserve.converter.onnx_file import read_onnx, save
from efserve.converter.parity import BATCHES, Case, check
from efserve.converter.quantize import quantize
from efserve.converter.samples import Samples, choose
from efserve.devices.cpu import usable_cores_here
from efserve.engines.base import Source, load
from efserve.engines.tensorrt_machine import check_machine
from efserve.errors import ConfigError, ConversionFailed, UsageError
from efserve.foreign import foreign
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.partition import Partition
from efserve.pbtxt import read_config
from efserve.precision import FILE as PARITY_FILE
from efserve.precision import Difference, Format, Loss, Parity, Precision, write_parity

if TYPE_CHECKING:
    from efserve.converter.torch_model import TorchModel

_LABELS = "labels.txt"
_ONLY_ONNX = "int8 is a form of ONNX files: only model.onnx is written"
_REMEDIES: dict[Precision, str] = {
    "fp16": "use --precision bf16, whose numbers reach as far as fp32's, or fp32",
    "bf16": "use fp32",
    "int8": "calibrate it on more of what the model will see with --calibration FOLDER, or use --precision bf16",
}
_TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")


@dataclass(frozen=True, slots=True)
class _Conversion:
    """A source understood: what its files shall be, how to write each, and what they must answer."""

    config: ModelConfig  # complete
    exports: dict[Format, Callable[[Path], None]]
    cases: tuple[Case, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    samples: Samples | None = None  # where the precision is below fp32
    judging: tuple[Case, ...] = ()  # the source's answers to the samples that judge


def convert(job: ConvertJob, on_step: OnStep) -> ConvertResult:
    """Converts `job.source` into the model repository, checked, or leaves the repository as it was.

    Raises UsageError for what the job asks wrongly, ConversionFailed where a step or the parity check fails.
    """
    folder = _model_folder(job)
    _check_precision(job)
    if job.format == "tensorrt":
        with foreign("a plan cannot be built", ConversionFailed):
            check_machine()
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
    samples, judging = None, tuple[Case, ...]()
    if job.precision != "fp32":
        given = ModelConfig(folder.name, "", job.max_batch, model.inputs, parameters=model.parameters)
        samples = choose(given, model.inputs, job)
        judging = torch_model.answers(model, job, samples.judging)
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
    config = _in_precision(config, job)
    exports: dict[Format, Callable[[Path], None]] = {
        "onnx": lambda path: torch_export.export_onnx(ready, path, job.opset or DEFAULT_OPSET),
        "torchscript": lambda path: torch_export.export_torchscript(ready, path, job.precision),
    }
    kept = (
        "onnx" if job.format == "tensorrt" else job.format
    )  # a plan is built from that file, and again from it elsewhere
    wanted = {name: export for name, export in exports.items() if kept in (name, "all")}
    notes = model.notes
    if job.precision == "int8":
        wanted.pop("torchscript", None)
        notes = (*notes, _ONLY_ONNX) if job.format == "all" else notes
    conversion = _Conversion(config, wanted, cases, model.labels, notes, samples, judging)
    return _write(conversion, job, folder, on_step)


def _check_precision(job: ConvertJob) -> None:
    if job.calibration and job.precision == "fp32":
        raise UsageError(
            "--calibration is for --precision fp16, bf16 and int8; fp32 loses nothing to be measured on it"
        )
    if job.precision == "int8" and job.format == "torchscript":
        raise UsageError("int8 is a form of ONNX files; use --format onnx, or --precision bf16 for TorchScript")
    if _runs_by_openvino(job) and importlib.util.find_spec("openvino") is None:
        raise ConversionFailed(
            "ONNX files run in bf16 by OpenVINO, which is not installed: pip install 'efserve[openvino]'; or write "
            "--format torchscript alone"
        )


def _runs_by_openvino(job: ConvertJob) -> bool:
    """onnxruntime has no bf16 on x86; OpenVINO runs a file in fp32 so when its config says so."""
    return job.precision == "bf16" and job.format not in ("torchscript", "tensorrt")


def _in_precision(config: ModelConfig, job: ConvertJob) -> ModelConfig:
    engine = "openvino" if _runs_by_openvino(job) else "tensorrt" if job.format == "tensorrt" else config.engine
    if job.precision == "fp32":
        return replace(config, engine=engine)
    return replace(config, engine=engine, parameters={**config.parameters, "precision": job.precision})


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
    exports: dict[Format, Callable[[Path], None]] = {"onnx": lambda path: save(model.file, path)}
    config = _in_precision(config, job)
    return _Conversion(config, exports, model.cases, (), notes + model.notes, model.samples, model.judging)


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
        if job.precision == "int8":
            on_step("Quantize model.onnx to int8")
            conversion = _quantized(conversion, version / FILENAMES["onnx"], job)
        checked: list[_Checked] = []
        for file_format in conversion.exports:
            on_step(f"Compare {FILENAMES[file_format]} with the source")
            checked.append(_check(file_format, version, conversion, job, on_step))
        parity = tuple(found for each in checked for found in each.differences)
        losses = tuple(each.loss for each in checked if each.loss is not None)
        write_parity(Parity(job.precision, parity, losses), version)
        if not keeps_config:
            (staged / "config.pbtxt").write_text(config_text(conversion.config), encoding="utf-8")
        if conversion.labels and (job.force or not (folder / _LABELS).exists()):
            (staged / _LABELS).write_text("\n".join(conversion.labels) + "\n", encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in _model_files(version)}
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
        parity=parity,
        losses=losses,
        notes=(*conversion.notes, *_remarks(conversion, keeps_config), *(each.note for each in checked if each.note)),
    )


def _quantized(conversion: _Conversion, path: Path, job: ConvertJob) -> _Conversion:
    """The conversion with its file in 8 bits, to be compared on the samples: others are not what it was made for."""
    assert conversion.samples is not None
    fp32 = path.with_suffix(".fp32")
    path.rename(fp32)
    samples = conversion.samples.calibrating
    quantize(fp32, path, conversion.config.inputs, samples, for_tensorrt=job.format == "tensorrt")
    for made in path.parent.glob(f"{fp32.name}*"):
        made.unlink()
    return replace(conversion, cases=_first_rows(conversion.judging))


def _first_rows(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The first row alone, and three rows of a batch, as other precisions are compared."""
    first = cases[0]
    return tuple(
        Case(rows, tuple(x[:rows] for x in first.inputs), tuple(y[:rows] for y in first.outputs))
        for rows in BATCHES
        if rows <= first.batch
    )


def _remarks(conversion: _Conversion, keeps_config: bool) -> Iterator[str]:
    if conversion.samples is not None:
        yield from conversion.samples.notes
    if keeps_config:
        yield "config.pbtxt was there and fits: it is kept"
    if not any(np.any(output) for case in conversion.cases for output in case.outputs):
        yield "the source answers nothing but zeros, so the comparison says little"


@dataclass(frozen=True, slots=True)
class _Checked:
    differences: tuple[Difference, ...]
    loss: Loss | None  # of a precision below fp32
    note: str = ""


def _check(file_format: Format, version: Path, conversion: _Conversion, job: ConvertJob, on_step: OnStep) -> _Checked:
    """Runs the file in the engine that will serve it, with the config that it will have."""
    name = conversion.config.engine if file_format == "onnx" and conversion.config.engine else file_format
    source = Source(version, conversion.config, Partition(threads=usable_cores_here()), on_progress=on_step)
    with foreign(f"{FILENAMES[file_format]} was written, but it cannot be run", ConversionFailed):
        engine = load(name, source)
        try:
            differences = check(file_format, engine.infer, conversion.cases, job.precision)
            if conversion.samples is None:
                return _Checked(differences, None)
            found = loss.measure(
                file_format, name, engine.infer, engine.config.inputs, conversion.judging, conversion.samples.what
            )
        finally:
            engine.close()
    return _Checked(differences, found, loss.judge(found, _REMEDIES[job.precision]))


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
    fits = tensors and config.parameters.items() <= old.parameters.items() and config.engine in ("", old.engine)
    fits = fits and config.parameters.get("precision") == old.parameters.get("precision")
    if not fits and not job.force:
        what = "preprocessing or precision" if tensors else "tensors"
        raise ConfigError(f"{path} describes other {what} than this model's; choose another --name, or --force")
    return fits


def _model_files(version: Path) -> list[Path]:
    return sorted(path for path in version.iterdir() if path.is_file() and path.name != PARITY_FILE)


def _model_folder(job: ConvertJob) -> Path:
    """The model's folder; raises UsageError for a name that cannot be one, or a version that is taken."""
    name = job.name or _stem(job.source) + ("" if job.precision == "fp32" else f"_{job.precision}")
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
