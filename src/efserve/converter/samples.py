"""Inputs that a precision is calibrated and judged on: the user's own, or random images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efserve.converter.job import ConvertJob
from efserve.converter.parity import random_inputs
from efserve.errors import UsageError
from efserve.imaging import from_parameters, is_image, random_image
from efserve.model_config import ModelConfig
from efserve.samples import read_folder
from efserve.tensors import Array, TensorSpec

CALIBRATION_ROWS = 128  # at most, of the user's own
JUDGED_ROWS = 64
RANDOM_ROWS = 32  # to calibrate with, where there are no others
_FREE_SIZE = 64
_CHUNK_ROWS = 8  # of a batch that is judged
_SPLIT = 4  # of the user's rows, every so manieth judges and does not calibrate
_SEED = 20240301

Row = tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """Batches of inputs, in the order of the model's; a model that does not batch has one row in each."""

    what: str  # what they are, for people
    calibrating: tuple[Row, ...]  # of one row each
    judging: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def choose(config: ModelConfig, inputs: Sequence[TensorSpec], job: ConvertJob) -> Samples:
    """Samples for a model whose `inputs` have no free sizes; raises UsageError for files that do not fit it."""
    if job.calibration:
        return _from_files(config, job)
    images = all(is_image(spec) for spec in inputs)
    rows = [_random_row(config, inputs, seed, images) for seed in range(RANDOM_ROWS + JUDGED_ROWS)]
    notes: tuple[str, ...] = ()
    if job.precision == "int8":
        notes = (
            f"int8 was calibrated on random {'images' if images else 'values'}: give samples of what the model will "
            "see with --calibration FOLDER",
        )
    what = "random images" if images else "random inputs"
    return Samples(what, _one_by_one(rows[:RANDOM_ROWS], config), _batches(rows[RANDOM_ROWS:], config), notes)


def _from_files(config: ModelConfig, job: ConvertJob) -> Samples:
    path = Path(job.calibration)
    if not path.exists():
        raise UsageError(f"--calibration {path} does not exist; expected a file or a folder of samples")
    rows = [sample.tensors for sample in read_folder(path, config, CALIBRATION_ROWS + JUDGED_ROWS)]
    what, notes = path.name or str(path), list[str]()
    judging = rows[::_SPLIT][:JUDGED_ROWS]
    calibrating = [row for at, row in enumerate(rows) if at % _SPLIT]
    if len(rows) < 2 * _SPLIT or job.precision != "int8":
        judging, calibrating = rows[:JUDGED_ROWS], rows
        if job.precision == "int8":
            notes.append(f"{len(rows)} samples are few: the same ones calibrated int8 and judged it")
    return Samples(what, _one_by_one(calibrating, config), _batches(judging, config), tuple(notes))


def _random_row(config: ModelConfig, inputs: Sequence[TensorSpec], seed: int, images: bool) -> Row:
    if images:
        rng, preprocess = np.random.default_rng([_SEED, seed]), from_parameters(config.parameters)
        return tuple(random_image(rng, spec, preprocess) for spec in inputs)
    return random_inputs(inputs, None, _SEED + seed)


def _one_by_one(rows: Sequence[Row], config: ModelConfig) -> tuple[Row, ...]:
    return tuple(tuple(array[None] for array in row) for row in rows) if config.batches else tuple(rows)


def _batches(rows: Sequence[Row], config: ModelConfig) -> tuple[Row, ...]:
    """As few batches as rows of equal shapes in a row allow."""
    if not config.batches:
        return tuple(rows)
    groups: list[list[Row]] = []
    for row in rows:
        shapes = [array.shape for array in row]
        if groups and len(groups[-1]) < _CHUNK_ROWS and shapes == [array.shape for array in groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return tuple(tuple(np.stack(arrays) for arrays in zip(*group, strict=True)) for group in groups)
