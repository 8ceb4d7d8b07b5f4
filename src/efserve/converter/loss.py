"""What a file of less precision loses: its answers beside those of the source, over samples. Knows arrays only."""

from collections.abc import Sequence

import numpy as np

from efserve.converter.job import FILENAMES
from efserve.converter.parity import Case, Run
from efserve.errors import ConversionFailed
from efserve.precision import Format, Loss
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

_AGREEMENT = 0.99  # of the largest scores, below which the user is told
_LEAST_AGREEMENT = 0.7  # below which a file is not the same model; of an untrained one, scores are close together


def measure(
    file_format: Format, engine: str, run: Run, inputs: Sequence[TensorSpec], cases: Sequence[Case], what: str
) -> Loss:
    """The loss in the first output; `cases` hold the source's answers, `inputs` what the file takes."""
    exact, found = [], []
    for case in cases:
        own = [array.astype(NUMPY_DTYPES[spec.datatype]) for array, spec in zip(case.inputs, inputs, strict=True)]
        exact.append(np.asarray(case.outputs[0], np.float64))
        found.append(np.asarray(run(own)[0], np.float64))
    gaps = [np.abs(one - other) for one, other in zip(exact, found, strict=True)]
    values = sum(gap.size for gap in gaps)
    return Loss(
        format=file_format,
        engine=engine,
        samples=sum(case.batch for case in cases),
        inputs=what,
        max_abs=max((float(gap.max()) for gap in gaps if gap.size), default=0.0),
        mean_abs=float(sum(gap.sum() for gap in gaps)) / max(values, 1),
        scale=max((float(np.abs(one).max()) for one in exact if one.size), default=0.0),
        top1_agreement=_agreement(exact, found),
    )


def judge(loss: Loss, remedy: str) -> str:
    """What to tell of a loss, empty where it is small; raises ConversionFailed where the file is not the same model."""
    if loss.top1_agreement is None or loss.top1_agreement >= _AGREEMENT:
        return ""
    part = f"{1 - loss.top1_agreement:.1%} of {loss.over}"
    text = f"the largest score is another one than the source's in {part}"
    if loss.top1_agreement < _LEAST_AGREEMENT:
        raise ConversionFailed(f"{FILENAMES[loss.format]}: {text}; {remedy}; nothing was written")
    return f"{FILENAMES[loss.format]}: {text}; {remedy}"


def _agreement(exact: Sequence[Array], found: Sequence[Array]) -> float | None:
    """Part of the rows with the same largest value; None where outputs are not [batch, several]."""
    if any(one.ndim != 2 or one.shape[1] < 2 for one in exact):
        return None
    same = [one.argmax(1) == other.argmax(1) for one, other in zip(exact, found, strict=True)]
    return float(np.mean(np.concatenate(same)))
