"""The steps of `efserve infer`: open the model, read the files, run them in batches, rank what comes back."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efserve.client.endpoint import Trust
from efserve.model_config import ModelConfig
from efserve.predictor.local import LocalModel
from efserve.predictor.model import Class, Model, class_output
from efserve.predictor.remote import RemoteModel
from efserve.samples import Sample, batches, read_samples
from efserve.tensors import Array

_FIRST_VALUES = 8


@dataclass(frozen=True, slots=True)
class InferJob:
    """One run, as the command line tells it."""

    model: str
    files: tuple[Path, ...]
    url: str = ""  # empty: the model runs in this process, from the repository
    model_repository: Path = Path("model_dir")
    version: str = ""  # empty: the latest
    engine: str = ""  # empty: the one that `serve` would take
    top: int = 3
    tls_ca: Path | None = None  # whose certificates are believed; None: the system's
    tls_insecure: bool = False  # anybody's


@dataclass(frozen=True, slots=True)
class OutputValues:
    """An output of one row that holds no class scores: what it is, and how it begins."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    first: tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one row: classes, best first, or where the model has none, its outputs."""

    sample: str
    classes: tuple[Class, ...]
    outputs: tuple[OutputValues, ...]


def predict(job: InferJob) -> list[Prediction]:
    """Runs the files through the model, in their order; raises UsageError for a file that does not fit."""
    with closing(_open(job)) as model:
        samples = [sample for path in job.files for sample in read_samples(path, model.config)]
        return [answer for group in batches(samples, model.config.max_rows) for answer in _ask(model, group, job.top)]


def _open(job: InferJob) -> Model:
    if job.url:
        return RemoteModel(job.url, job.model, job.version, Trust(job.tls_ca, anybody=job.tls_insecure))
    return LocalModel(job.model_repository, job.model, job.version, job.engine)


def _ask(model: Model, group: Sequence[Sample], top: int) -> list[Prediction]:
    config = model.config
    tensors = zip(*(sample.tensors for sample in group), strict=True)
    inputs = [np.stack(rows) if config.batches else rows[0] for rows in tensors]
    scores = class_output(config)
    if scores is not None:
        ranked = model.classes(inputs, scores, top)
        return [Prediction(sample.name, classes, ()) for sample, classes in zip(group, ranked, strict=True)]
    outputs = model.outputs(inputs)
    rows = [[array[row] for array in outputs] for row in range(len(group))] if config.batches else [outputs]
    return [Prediction(sample.name, (), _values(config, row)) for sample, row in zip(group, rows, strict=True)]


def _values(config: ModelConfig, row: Sequence[Array]) -> tuple[OutputValues, ...]:
    return tuple(
        OutputValues(spec.name, spec.datatype, array.shape, tuple(map(_plain, array.ravel()[:_FIRST_VALUES])))
        for spec, array in zip(config.outputs, map(np.asarray, row), strict=True)
    )


def _plain(value: object) -> float | str:
    match value:
        case bytes():
            return value.decode("utf-8", "replace")
        case np.number() | np.bool_():
            number = value.item()
            assert isinstance(number, int | float)
            return number
        case _:
            return str(value)
