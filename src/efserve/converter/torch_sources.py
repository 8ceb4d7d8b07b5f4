"""PyTorch models of the user's own: a TorchScript file, or what a callable returns.

Importing this module imports torch.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from efserve.converter.job import ConvertJob
from efserve.converter.tensor_options import parse_inputs
from efserve.converter.torch_model import TORCH_DATATYPES, TorchModel, quiet
from efserve.converter.torchvision_zoo import load_state, read_state_dict
from efserve.errors import ConversionFailed, UsageError
from efserve.foreign import foreign
from efserve.tensors import TensorSpec


def load_torchscript(path: Path, job: ConvertJob) -> TorchModel:
    """A scripted or traced module from a file."""
    if job.weights != "default":
        raise UsageError("--weights is for torchvision names and callables; a TorchScript file brings its own")
    with foreign(f"{path} is no TorchScript file (a file of weights goes with --weights)", UsageError), quiet():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch
    return TorchModel(module.eval(), _inputs(job, str(path)))


def load_callable(source: str, job: ConvertJob) -> TorchModel:
    """What `package.module:callable` returns; the working folder is importable while it is made."""
    module_name, _, attribute = source.partition(":")
    inputs = _inputs(job, source)
    with _working_folder_importable():
        with foreign(f"module '{module_name}' of SOURCE '{source}' cannot be imported", UsageError):
            container = importlib.import_module(module_name)
        factory = getattr(container, attribute, None)
        if not callable(factory):
            raise UsageError(f"module '{module_name}' has no callable '{attribute}'; one must return a module")
        with foreign(f"{source}() failed", ConversionFailed):
            module = factory()
    if not isinstance(module, nn.Module):
        raise UsageError(f"{source}() returns {type(module).__name__}; expected a torch.nn.Module")
    if job.weights not in ("default", "none"):
        load_state(module, read_state_dict(Path(job.weights)), Path(job.weights))
    return TorchModel(module.eval().cpu(), inputs)


def _inputs(job: ConvertJob, source: str) -> tuple[TensorSpec, ...]:
    if not job.input_shape:
        raise UsageError(
            f"{source} does not tell its input shapes; give each input's, without the batch, such as "
            "--input-shape 3,224,224 or --input-shape ids:128 --dtype ids:INT64"
        )
    inputs = parse_inputs(job.input_shape, job.dtype)
    for spec in inputs:
        if spec.datatype not in TORCH_DATATYPES:
            known = ", ".join(TORCH_DATATYPES)
            raise UsageError(f"--dtype {spec.datatype} of input '{spec.name}' is not one of PyTorch's: {known}")
    return inputs


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
