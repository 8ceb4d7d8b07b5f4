"""Parity: seeded random inputs, the source's answers to them, and how far a written file is from those.

Knows arrays only; who runs a model passes a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from efserve.converter.job import FILENAMES
from efserve.errors import ConversionFailed
from efserve.noise import noise
from efserve.precision import Difference, Format, Precision
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

Run = Callable[[Sequence[Array]], Sequence[Array]]  # inputs in order -> outputs in order

BATCHES = (1, 3)
_SEED = 20240229


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An output may differ by `absolute` + `relative` x its own largest magnitude."""

    absolute: float
    relative: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-6, 1e-4),
    "fp16": Tolerance(1e-4, 2e-2),
    "bf16": Tolerance(1e-3, 1e-1),
    "int8": Tolerance(1e-3, 5e-1),
}
_EXACT = Tolerance(0.0, 0.0)  # integers, booleans and strings


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one batch and what the source answers to them, in the order of the model's tensors."""

    batch: int
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


def random_inputs(specs: Sequence[TensorSpec], batch: int | None, seed: int = _SEED) -> tuple[Array, ...]:
    """Inputs [batch, *dims], or [*dims] with None, the same at every call.

    Floats are standard normal; integers are 0 or 1, which any embedding or mask accepts.
    """
    rng = np.random.default_rng([seed, batch or 0])
    return tuple(_random(rng, spec, spec.dims if batch is None else (batch, *spec.dims)) for spec in specs)


def in_precision(specs: Sequence[TensorSpec], precision: Precision) -> tuple[TensorSpec, ...]:
    """The tensors as a file of this precision has them: with fp16, FP32 becomes FP16."""
    if precision != "fp16":
        return tuple(specs)
    return tuple(replace(spec, datatype="FP16") if spec.datatype == "FP32" else spec for spec in specs)


def _random(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = NUMPY_DTYPES[spec.datatype]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return noise(rng, spec.datatype, shape)


def check(file_format: Format, run: Run, cases: Sequence[Case], precision: Precision) -> tuple[Difference, ...]:
    """Runs a written file on every case; raises ConversionFailed at the first that is beyond the tolerance."""
    found = []
    for case in cases:
        difference = compare(file_format, case, run(case.inputs), precision)
        if not difference.passed:
            tolerance = TOLERANCES[precision]
            raise ConversionFailed(
                f"{FILENAMES[file_format]} differs from its source at batch {case.batch} by up to "
                f"{difference.max_abs:.3g} (relative {difference.max_rel:.3g}); {precision} allows "
                f"{tolerance.absolute:g} + {tolerance.relative:g} x the output's largest value; nothing was written"
            )
        found.append(difference)
    return tuple(found)


def compare(file_format: Format, case: Case, outputs: Sequence[Array], precision: Precision) -> Difference:
    """The largest differences over all outputs; raises ConversionFailed where a shape is not the source's."""
    worst_abs, worst_rel, passed = 0.0, 0.0, True
    for expected, actual in zip(case.outputs, outputs, strict=True):
        if expected.shape != actual.shape:
            raise ConversionFailed(
                f"{FILENAMES[file_format]} answers shape {list(actual.shape)} at batch {case.batch} where its source "
                f"answers {list(expected.shape)}; the model's forward probably fixes its batch"
            )
        max_abs, scale = _distance(expected, actual)
        tolerance = TOLERANCES[precision] if expected.dtype.kind == "f" else _EXACT
        passed = passed and max_abs <= tolerance.absolute + tolerance.relative * scale
        worst_abs = max(worst_abs, max_abs)
        worst_rel = max(worst_rel, max_abs / scale if scale else float(max_abs > 0))
    return Difference(file_format, case.batch, worst_abs, worst_rel, passed)


def _distance(expected: Array, actual: Array) -> tuple[float, float]:
    """Largest absolute difference (infinite where only one is finite), and largest finite magnitude of `expected`."""
    if expected.dtype.kind not in "fiub" or expected.size == 0:
        return (0.0 if np.array_equal(expected, actual) else np.inf), 0.0
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(wide - other))
    max_abs = float(np.max(np.where(np.isnan(gaps), np.inf, gaps)))
    return max_abs, float(np.max(np.abs(wide), where=np.isfinite(wide), initial=0.0))
