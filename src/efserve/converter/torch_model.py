"""A PyTorch model on its way into files: what it answers, in which precision it is written, its cases for parity.

Importing this module imports torch.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from efserve.converter.job import ConvertJob
from efserve.converter.parity import BATCHES, Case, in_precision, random_inputs
from efserve.errors import ConversionFailed
from efserve.foreign import foreign
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec, datatype_of

TORCH_DATATYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
_EXAMPLE_BATCH = 2  # to trace with: not 1, which hides broadcasting, nor one that parity is checked at


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A module in eval mode on the CPU, and what is known of its tensors; dims have no batch where the job batches."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...] = ()  # empty: the keys of a dict, `output`, or `output_0`, `output_1`, ...
    labels: tuple[str, ...] = ()  # of the first output
    parameters: dict[str, str] = field(default_factory=dict)  # for config.pbtxt
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exportable:
    """The module as it will be written: in its final precision, answering a tensor or a tuple."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: tuple[Array, ...]
    batches: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    is_plain: bool  # a tensor or a tuple


class _Positional(nn.Module):
    """Gives a model's outputs as a tuple in a fixed order, which both file formats can express."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.module(*inputs)
        return tuple(answer.values() if isinstance(answer, Mapping) else answer)


def eager_cases(model: TorchModel, job: ConvertJob) -> tuple[Case, ...]:
    """The model's own answers, in its own precision, to the inputs that the files will be given."""
    batches = BATCHES if job.max_batch else (None,)
    inputs = [random_inputs(in_precision(model.inputs, job.precision), batch) for batch in batches]
    return answers(model, job, inputs)


def answers(model: TorchModel, job: ConvertJob, batches: Sequence[tuple[Array, ...]]) -> tuple[Case, ...]:
    """The model's own answers, in its own precision, to each of the batches."""
    cases = []
    for inputs in batches:
        batch = inputs[0].shape[0] if job.max_batch else None
        own = [array.astype(NUMPY_DTYPES[spec.datatype]) for spec, array in zip(model.inputs, inputs, strict=True)]
        answer = _run(model.module, own, f"the model's forward failed at batch {batch or 1}")
        for name, array in zip(answer.names, answer.arrays, strict=True):
            if batch is not None and array.shape[:1] != (batch,):
                raise ConversionFailed(
                    f"output '{name}' has shape {list(array.shape)} at batch {batch}: its first dimension is not the "
                    "batch; for a model that does not batch, give whole shapes and --max-batch 0"
                )
        cases.append(Case(batch or 1, inputs, answer.arrays))
    return tuple(cases)


def exportable(model: TorchModel, job: ConvertJob) -> Exportable:
    """The module ready for export; turns it into half precision in place where the job says so."""
    module = model.module.half() if job.precision == "fp16" else model.module
    inputs = in_precision(model.inputs, job.precision)
    example = random_inputs(inputs, _EXAMPLE_BATCH if job.max_batch else None)
    answer = _run(module, example, f"the model's forward failed in {job.precision}")
    names = model.output_names or answer.names
    clash = {spec.name for spec in inputs} & set(names)
    if clash:
        raise ConversionFailed(f"'{clash.pop()}' names an input and an output; rename the input with --input-shape")
    outputs = tuple(
        TensorSpec(name, datatype_of(array.dtype), array.shape[1 if job.max_batch else 0 :])
        for name, array in zip(names, answer.arrays, strict=True)
    )
    return Exportable(
        module if answer.is_plain else _Positional(module).eval(), inputs, outputs, example, job.max_batch > 0
    )


def _run(module: nn.Module, inputs: Sequence[Array], what_failed: str) -> _Answer:
    with foreign(what_failed, ConversionFailed), torch.no_grad():
        answer = module(*to_torch(inputs))
    match answer:
        case Mapping():
            named = {str(key): value for key, value in answer.items()}
        case tuple() | list():
            named = {f"output_{index}": value for index, value in enumerate(answer)}
        case _:
            named = {"output": answer}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ConversionFailed(
                f"the model's forward returns {type(value).__name__} as '{name}'; expected a tensor, or a tuple, list "
                "or dict of tensors"
            )
    arrays = tuple(value.numpy(force=True) for value in named.values())
    return _Answer(tuple(named), arrays, isinstance(answer, torch.Tensor | tuple))


def to_torch(arrays: Sequence[Array]) -> tuple[torch.Tensor, ...]:
    """Tensors that own their memory, so that a model which writes into its input harms nobody."""
    return tuple(torch.from_numpy(np.array(array)) for array in arrays)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what torch announces: the end of torch.jit, and what tracing may get wrong, which parity finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
