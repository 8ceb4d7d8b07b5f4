"""An ONNX file on its way into a repository: its tensors, a free batch, precision, cases for parity. Needs no torch."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from efserve.converter.job import ConvertJob
from efserve.converter.parity import BATCHES, Case, Run, compare, in_precision, random_inputs
from efserve.converter.samples import Samples, choose
from efserve.converter.tensor_options import parse_shape
from efserve.devices.cpu import usable_cores_here
from efserve.engines.base import Engine, Source, load
from efserve.errors import ConversionFailed, UsageError
from efserve.foreign import foreign
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec

_PROTOBUF_LIMIT_BYTES = 2_000_000_000  # of one message; larger weights go into a file beside the model
_FREE_SIZE = 64  # what a free dimension is in the parity check where --input-shape does not say


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """What will be written, its config, and its source's answers."""

    file: onnx.ModelProto
    config: ModelConfig
    cases: tuple[Case, ...]
    notes: tuple[str, ...]
    samples: Samples | None  # where the precision is below fp32
    judging: tuple[Case, ...]  # the source's answers to the judging samples


def read_onnx(path: Path, name: str, job: ConvertJob) -> OnnxModel:
    """The model of an ONNX file as the job wants it; raises UsageError for what is no ONNX file, ConversionFailed.

    A fixed first dimension is made free where the graph then still gives the same answers.
    """
    with foreign(f"'{path}' is no ONNX file", UsageError):
        file = onnx.load(str(path))
    source = _engine(path, name, job)
    config, notes = source.config, list[str]()
    cases = _cases(config, source.infer, job)
    if job.max_batch and not config.batches:
        freed = _with_free_batch(file, source, name, job)
        if freed is None:
            notes.append("the file fixes its batch: the model is written as one that does not batch")
        else:
            file, config, cases = freed
    samples, judging = None, tuple[Case, ...]()
    if job.precision != "fp32":
        samples = choose(config, _concrete(config.inputs, job), job)
        judging = _judged(source, config, samples)
    source.close()
    if job.opset is not None:
        with foreign(f"the model cannot be brought to opset {job.opset}", ConversionFailed):
            file = onnx.version_converter.convert_version(file, job.opset)
    if job.precision == "fp16":
        file = _half(file)
    inputs, outputs = (in_precision(specs, job.precision) for specs in (config.inputs, config.outputs))
    config = replace(config, inputs=inputs, outputs=outputs)
    return OnnxModel(file, config, cases, tuple(notes), samples, judging)


def save(file: onnx.ModelProto, path: Path) -> None:
    """Writes one file, or from 2 GB on, which protobuf cannot hold, a second one with the weights beside it."""
    if file.ByteSize() < _PROTOBUF_LIMIT_BYTES:
        onnx.save_model(file, str(path))
    else:
        weights = path.with_name(f"{path.name}.data")
        onnx.save_model(file, str(path), save_as_external_data=True, location=weights.name)
        weights.chmod(path.stat().st_mode)  # onnx makes it for its owner's eyes only


def _engine(path: Path, name: str, job: ConvertJob) -> Engine:
    config = ModelConfig(name, default_model_filename=path.name)
    with foreign(f"onnxruntime cannot load {path.name}", ConversionFailed):
        partition = Partition(threads=usable_cores_here())
        return load("onnx", Source(path.parent, config, partition, job.max_batch, keeps=False))


def _cases(config: ModelConfig, run: Run, job: ConvertJob) -> tuple[Case, ...]:
    cases = []
    for batch in BATCHES if config.batches else (None,):
        inputs = random_inputs(in_precision(_concrete(config.inputs, job), job.precision), batch)
        own = [array.astype(NUMPY_DTYPES[spec.datatype]) for spec, array in zip(config.inputs, inputs, strict=True)]
        shapes = ", ".join(f"{spec.name} {list(array.shape)}" for spec, array in zip(config.inputs, own, strict=True))
        with foreign(
            f"the model does not run on {shapes} (free sizes are chosen with --input-shape name:sizes)",
            ConversionFailed,
        ):
            cases.append(Case(batch or 1, inputs, tuple(run(own))))
    return tuple(cases)


def _judged(source: Engine, config: ModelConfig, samples: Samples) -> tuple[Case, ...]:
    """The answers of the source, which may take only its own number of rows at once."""
    fixed = 0 if source.config.batches or not config.batches else source.config.inputs[0].dims[0]
    run = partial(_in_pieces, source, fixed) if fixed else source.infer
    with foreign("the model does not run on the samples", ConversionFailed):
        return tuple(
            Case(inputs[0].shape[0] if config.batches else 1, inputs, tuple(run(inputs))) for inputs in samples.judging
        )


def _concrete(specs: Sequence[TensorSpec], job: ConvertJob) -> tuple[TensorSpec, ...]:
    """The specs with every free dimension given a size: by --input-shape, or one that suits texts and small images."""
    given = dict(_given_shape(text, specs) for text in job.input_shape)
    return tuple(
        replace(spec, dims=given.get(spec.name, tuple(_FREE_SIZE if dim < 0 else dim for dim in spec.dims)))
        for spec in specs
    )


def _given_shape(text: str, specs: Sequence[TensorSpec]) -> tuple[str, Shape]:
    name, dims = parse_shape(text)
    if not name and len(specs) == 1:
        name = specs[0].name
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(f"--input-shape '{text}' names no input of the file, which has {names}")
    if len(dims) != len(spec.dims) or any(own not in (-1, dim) for own, dim in zip(spec.dims, dims, strict=True)):
        raise UsageError(f"--input-shape '{text}' does not fit input '{name}' of the file, {list(spec.dims)}")
    return name, dims


def _with_free_batch(
    file: onnx.ModelProto, source: Engine, name: str, job: ConvertJob
) -> tuple[onnx.ModelProto, ModelConfig, tuple[Case, ...]] | None:
    """The file with a free first dimension, tried against its source; None where the graph depends on its batch."""
    sizes = {spec.dims[:1] for spec in (*source.config.inputs, *source.config.outputs)}
    if len(sizes) != 1 or min(sizes) in ((), (-1,)):
        return None
    freed = onnx.ModelProto()
    freed.CopyFrom(file)
    freed.graph.ClearField("value_info")  # shapes inferred for the old batch
    names = {spec.name for spec in (*source.config.inputs, *source.config.outputs)}
    for value in (*freed.graph.input, *freed.graph.output):
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    (fixed,) = sizes.pop()
    with tempfile.TemporaryDirectory(prefix="efserve-") as folder:
        path = Path(folder) / "model.onnx"
        save(freed, path)
        try:
            trial = _engine(path, name, job)
            cases = _cases(trial.config, partial(_in_pieces, source, fixed), job)
            fits = all(compare("onnx", case, _answers(trial, case), job.precision).passed for case in cases)
        except ConversionFailed:
            return None
    return (freed, trial.config, cases) if fits else None


def _answers(engine: Engine, case: Case) -> Sequence[Array]:
    own = [array.astype(NUMPY_DTYPES[s.datatype]) for s, array in zip(engine.config.inputs, case.inputs, strict=True)]
    with foreign("the model with a free batch does not run", ConversionFailed):
        return engine.infer(own)


def _in_pieces(engine: Engine, fixed: int, inputs: Sequence[Array]) -> list[Array]:
    """Runs any number of rows on a model that only takes `fixed` rows at once; the last piece is filled up."""
    rows = inputs[0].shape[0]
    picked = np.arange(-(-rows // fixed) * fixed) % rows
    pieces = [engine.infer([array[part] for array in inputs]) for part in picked.reshape(-1, fixed)]
    return [np.concatenate(outputs)[:rows] for outputs in zip(*pieces, strict=True)]


def _half(file: onnx.ModelProto) -> onnx.ModelProto:
    """Weights, compute, inputs and outputs in FP16."""
    # onnxruntime's own tool: a large module that most conversions do without
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with foreign("the model cannot be turned into fp16", ConversionFailed):
        half: onnx.ModelProto = convert_float_to_float16(file, keep_io_types=False)
    return half
