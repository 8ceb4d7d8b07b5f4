"""Torchvision's classification models by name: weights, input size, preprocessing and labels.

Importing this module imports torch and torchvision.
"""

import difflib
import http.client
import importlib
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from efserve.converter.job import ConvertJob
from efserve.converter.tensor_options import parse_inputs
from efserve.converter.torch_model import TorchModel
from efserve.errors import ConversionFailed, UsageError
from efserve.imaging import Preprocess
from efserve.tensors import TensorSpec

_DOWNLOAD_TIMEOUT_S = 30.0  # without a byte
# Their published weights were trained on inputs scaled otherwise; the model rescales, but only when told so or when
# torchvision loads the weights itself. init_weights asks for minutes of sampling that loaded weights overwrite.
_SPECIAL: dict[str, dict[str, Any]] = {
    name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")
}


def load_zoo_model(name: str, job: ConvertJob) -> TorchModel:
    """The model with the weights that the job asks for; raises UsageError for an unknown name, ConversionFailed."""
    models = import_torchvision()
    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}? SOURCE" if near else "SOURCE"
        raise UsageError(
            f"'{name}' is no torchvision classification model; {hint} may be such a name (resnet50), a .pt or .onnx "
            "file, or package.module:callable"
        )
    published = models.get_model_weights(name).DEFAULT
    transform = published.transforms()
    notes: tuple[str, ...] = ()
    match job.weights:
        case "default":
            with _downloading(name):
                module = models.get_model(name, weights=published, progress=False)
        case "none":
            torch.manual_seed(0)
            module = models.get_model(name, **_SPECIAL.get(name, {}))
            notes = ("the weights are random, as --weights none asks; answers mean nothing",)
        case file:
            module = _with_weights_file(name, Path(file))
    size = transform.crop_size[0]
    whole = "" if job.max_batch else "1,"
    inputs = parse_inputs(job.input_shape or (f"{whole}3,{size},{size}",), job.dtype)
    preprocess = Preprocess(
        resize=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    labels = tuple(published.meta["categories"])
    return TorchModel(
        module.eval(),
        inputs,
        labels=labels if _classes(module.state_dict()) == len(labels) else (),
        parameters=_fitted(preprocess, inputs, size).parameters(),
        notes=notes,
    )


def _fitted(preprocess: Preprocess, inputs: tuple[TensorSpec, ...], size: int) -> Preprocess:
    """The published preprocessing, in proportion where --input-shape asks for another size than the published one."""
    side = min(inputs[0].dims[-2:], default=size)
    return preprocess if side == size else replace(preprocess, resize=round(preprocess.resize * side / size))


def _with_weights_file(name: str, path: Path) -> nn.Module:
    """The model with a state dict from a file; its number of classes is the file's."""
    state = read_state_dict(path)
    models = import_torchvision()
    options = dict(_SPECIAL.get(name, {}))
    module: nn.Module = models.get_model(name, **options)
    last = list(module.state_dict())[-1]
    if last in state and len(state[last]) != _classes(module.state_dict()):
        module = models.get_model(name, num_classes=len(state[last]), **options)
    load_state(module, state, path)
    return module


def _classes(state: Mapping[str, torch.Tensor]) -> int:
    """Number of classes: in every torchvision classifier the last tensor belongs to the last layer."""
    return len(state[list(state)[-1]])


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a .pth, .pt or .safetensors file; raises UsageError. Runs no code of the file."""
    if not path.is_file():
        raise UsageError(f"--weights '{path}' is no file; expected default, none, or a file with a state dict")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as exc:
        raise UsageError(
            f"--weights {path} cannot be read as tensors alone; write it with torch.save(model.state_dict(), FILE)"
        ) from exc
    for key in ("state_dict", "model"):  # as training scripts wrap it
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UsageError(f"--weights {path} holds no state dict; write it with torch.save(model.state_dict(), FILE)")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        safetensors: Any = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as exc:
        raise UsageError(f"--weights {path} needs the package safetensors: pip install safetensors") from exc
    try:
        tensors: dict[str, torch.Tensor] = safetensors.load_file(str(path))
    except (importlib.import_module("safetensors").SafetensorError, OSError) as exc:
        raise UsageError(f"--weights {path} is no safetensors file: {exc}") from exc
    return tensors


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads the tensors into the module; raises ConversionFailed with the names that do not fit."""
    own = module.state_dict()
    wrong = [
        f"{what} {_listed(keys)}"
        for what, keys in (
            ("it lacks", [key for key in own if key not in state]),
            ("the model does not know", [key for key in state if key not in own]),
            ("of another shape is", [key for key in own if key in state and own[key].shape != state[key].shape]),
        )
        if keys
    ]
    if wrong:
        raise ConversionFailed(f"--weights {path} does not fit the model: {'; '.join(wrong)}")
    module.load_state_dict(state)


def _listed(keys: list[str]) -> str:
    rest = len(keys) - 4
    return ", ".join(keys[:4]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Gives a download a timeout, and says what to do without one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        yield
    except (OSError, http.client.HTTPException, RuntimeError) as exc:  # RuntimeError: the file's hash is wrong
        raise ConversionFailed(
            f"the weights of {name} could not be downloaded ({exc}); give a file with --weights FILE, or take random "
            "ones with --weights none"
        ) from exc
    finally:
        socket.setdefaulttimeout(before)


@cache
def import_torchvision() -> ModuleType:
    """`torchvision.models`; raises ConversionFailed where torchvision is missing or does not fit torch."""
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as exc:
        raise ConversionFailed("torchvision models need torchvision: pip install 'efserve[torch]'") from exc
    except RuntimeError as exc:
        # Torchvision's CUDA build beside a CPU torch: its operators do not load, and their registration then fails.
        # No classification model uses them; declaring them is enough.
        if "operator torchvision::nms does not exist" not in str(exc):
            raise ConversionFailed(f"torchvision cannot be imported: {exc}") from exc
        _declare_operators()
        return importlib.import_module("torchvision.models")


@cache  # the declarations live as long as the library object
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch
    for operator in ("nms", "qnms"):
        signature = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]  # torch
    return library
