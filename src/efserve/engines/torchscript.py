"""TorchScript models by libtorch, on the CPU; those on a GPU are `cuda_torch.py`.

The files hold no names and shapes: both come from the config; inputs are passed by position, in its order. Modules are
optimized for inference (frozen, folded, weights repacked): measured on torchvision's convolutional networks, up to
twice as fast with the same answers to 1e-6 of their scale.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from efserve.engines.base import Engine, Remark, Source
from efserve.engines.cuda_torch import load_on_gpu, select_outputs
from efserve.errors import InferenceFailed, LoadFailed
from efserve.model_config import FileSignature, ModelConfig
from efserve.tensors import Array, TensorSpec


class TorchScriptEngine:
    """One script module in inference mode."""

    device_ns = 0
    remarks: Sequence[Remark] = ()

    def __init__(self, module: Any, config: ModelConfig) -> None:
        self.config = config
        self.version = f"torch {torch.__version__}"
        self.warmup_runs = 1 if config.max_rows > 1 else 2  # the first run profiles, the second compiles: of any size
        self._forward = module.forward  # without the hooks that a call of the module looks for: 1 us less

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the module; a tensor, a tuple, a list (by position) or a dict (by name) of tensors comes back."""
        tensors = _tensors(inputs, self.config.inputs)
        with torch.inference_mode():
            answer = self._forward(*tensors)
        return [_array(tensor) for tensor in select_outputs(answer, self.config.outputs)]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """A run over tensors that are made once; libtorch's outputs are copied. Saves 8 us of a small model's 250."""
        forward, specs = self._forward, self.config.outputs
        sources, targets = _tensors(inputs, self.config.inputs), _tensors(outputs, specs)

        def run() -> None:
            with torch.inference_mode():
                answers = select_outputs(forward(*sources), specs)
                for spec, target, answer in zip(specs, targets, answers, strict=True):
                    if answer.shape != target.shape or answer.dtype is not target.dtype:
                        raise self._unexpected(spec, target, answer)
                    target.copy_(answer)

        return run

    def close(self) -> None:
        """Free the module."""
        del self._forward

    def _unexpected(self, spec: TensorSpec, target: torch.Tensor, answer: torch.Tensor) -> InferenceFailed:
        if answer.dtype is not target.dtype:
            found = str(answer.dtype).removeprefix("torch.")
            return InferenceFailed(f"output '{spec.name}' is {found}, the config says {spec.datatype}")
        return InferenceFailed(
            f"output '{spec.name}' has shape {list(answer.shape)}, expected {list(target.shape)}"
            + (f" for a batch of {target.shape[0]}" if self.config.batches else "")
        )


def load(source: Source) -> Engine:
    """The module of `model.pt`, frozen and optimized, with as many threads as the partition has."""
    config = source.settle(FileSignature())
    strings = [spec.name for spec in (*config.inputs, *config.outputs) if spec.datatype == "BYTES"]
    if strings:
        raise LoadFailed(f"tensor '{strings[0]}' is BYTES, but TorchScript models have no string tensors")
    if source.partition.is_gpu:
        return load_on_gpu(source, config)
    torch.set_num_threads(max(1, source.partition.threads))
    if torch.get_num_interop_threads() != 1:  # torch lets it be set only once in a process
        torch.set_num_interop_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libtorch announces the end of torch.jit with each call
        module = torch.jit.load(str(source.file("model.pt")), map_location="cpu").eval()  # type: ignore[no-untyped-call]  # torch
        return TorchScriptEngine(_optimized(module), config)


def _optimized(module: Any) -> Any:
    try:
        return torch.jit.optimize_for_inference(module)
    except RuntimeError:  # frozen already, or made of what the optimizer cannot take: it runs as it is
        return module


def _tensors(arrays: Sequence[Array], specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """Over the same memory."""
    return [
        torch.from_numpy(array).view(torch.bfloat16) if spec.datatype == "BF16" else torch.from_numpy(array)
        for array, spec in zip(arrays, specs, strict=True)
    ]


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
