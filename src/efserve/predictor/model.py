"""A model that can be asked: what is known of it, and its answers as ranked classes or as plain tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from efserve.model_config import ModelConfig
from efserve.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Class:
    """One class and its score, as the model gives it: a probability or a logit."""

    index: int
    label: str  # empty where the model has no labels
    score: float


class Model(Protocol):
    """A model in this process or on a server. Inputs are whole, [rows, ...] where it batches, in the config's order."""

    config: ModelConfig

    def classes(self, inputs: Sequence[Array], output: TensorSpec, top: int) -> list[tuple[Class, ...]]:
        """The `top` best classes of each row by the scores in `output`, best first."""
        ...

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs, in the order of the config."""
        ...

    def close(self) -> None:
        """Give back what the model holds."""
        ...


def class_output(config: ModelConfig) -> TensorSpec | None:
    """The output that holds a score for each class: the one with labels, else the first that is a list of numbers."""
    numeric = [
        spec for spec in config.outputs if len(spec.dims) == 1 and spec.dims != (1,) and spec.datatype != "BYTES"
    ]
    labelled = [spec for spec in numeric if spec.name in config.label_filenames]
    return next(iter(labelled + numeric), None)


def top_classes(scores: Array, labels: Sequence[str], top: int) -> list[tuple[Class, ...]]:
    """The `top` highest of each row of `scores` [rows, classes], best first; equal scores by index."""
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :top]
    return [
        tuple(Class(int(i), labels[i] if i < len(labels) else "", float(row[i])) for i in order)
        for row, order in zip(scores, best, strict=True)
    ]
