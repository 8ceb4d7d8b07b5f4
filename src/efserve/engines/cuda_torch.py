"""TorchScript models on a GPU: precision, memory format, graphs per batch size; copies from and to shared memory.

What may be switched is one value, so that each choice can be measured alone (`parameters { key: "cuda" }` of the
config). What touches the GPU is behind `Stage`. Marked as unproved: tested with a stand-in for the GPU only.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch

from efserve.engines.base import Remark, Source
from efserve.engines.cuda_pins import Pins
from efserve.engines.device_lost import check_device
from efserve.errors import ConfigError, InferenceFailed, LoadFailed
from efserve.model_config import ModelConfig
from efserve.tensors import Array, Shape, TensorSpec

PARAMETER = "cuda"  # of config.pbtxt: choices to switch, such as "no-graphs tf32"
_PRECISIONS = {"": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_CAPTURE_AT = 3  # the run of a size that becomes its graph: TorchScript specialises in the first two
_REMEMBERED = 64  # combinations of shapes with buffers and a graph; others are run as they come

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class TorchChoices:
    """How a module runs on the GPU."""

    precision: str = ""  # fp32, fp16, bf16; empty: as the file has it
    channels_last: bool = True  # where a convolution would compute in FP16 or BF16, whose kernels want it
    freeze: bool = True  # weights become constants: batch norms are folded into convolutions
    optimize: bool = False  # torch.jit.optimize_for_inference on top
    graphs: bool = True
    pinned: bool = True  # page-lock the shared memory
    tf32: bool = False  # FP32 matrix products and convolutions in TF32
    benchmark: bool = True  # cuDNN tries its kernels on each new shape


def choices_of(config: ModelConfig) -> TorchChoices:
    """What the config's parameters choose; ConfigError for words and precisions that mean nothing."""
    precision = config.parameters.get("precision", "")
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"config of '{config.name}': parameter precision is '{precision}', expected one of fp32, fp16, bf16 for "
            "TorchScript on a GPU"
        )
    names = {each.name.replace("_", "-"): each.name for each in fields(TorchChoices) if each.name != "precision"}
    switched = {}
    for word in config.parameters.get(PARAMETER, "").replace(",", " ").split():
        name = word.removeprefix("no-")
        if name not in names:
            raise ConfigError(
                f"config of '{config.name}': parameter {PARAMETER} has '{word}', expected words among "
                f"{', '.join(names)}, each with no- in front to switch it off"
            )
        switched[names[name]] = not word.startswith("no-")
    return replace(TorchChoices(precision=precision), **switched)  # type: ignore[arg-type]  # they are all bool


class Stage(Protocol):
    """The GPU: one stream, on which everything happens."""

    device: torch.device

    def begin(self) -> None:
        """Note the device's time before what is to be measured."""
        ...

    def end(self) -> None:
        """Note it behind."""
        ...

    def wait(self) -> int:
        """Wait for all of it; nanoseconds between the notes."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on the device; RuntimeError where it is lost to this process."""
        ...

    def capture(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """A call that repeats the work on the same memory, and the outputs it writes; RuntimeError where impossible."""
        ...


@dataclass(slots=True)
class _Size:
    """Buffers on the device for one combination of input shapes."""

    inputs: list[torch.Tensor]
    runs: int = 0
    replay: Callable[[], None] | None = None
    outputs: Tensors = ()


@dataclass(slots=True)
class CudaTorchEngine:
    """One module with its stage; `config` is complete and has no strings."""

    config: ModelConfig
    module: Any
    stage: Stage
    choices: TorchChoices
    pins: Pins | None
    version: str = f"torch {torch.__version__}"
    warmup_runs: int = _CAPTURE_AT + 1
    device_ns: int = 0
    _sizes: dict[tuple[Shape, ...], _Size] = field(default_factory=dict)
    _problem: str = ""  # why there are no graphs

    @property
    def remarks(self) -> Sequence[Remark]:
        """Precision and graphs, and what is slower than it could be."""
        graphs = sum(size.replay is not None for size in self._sizes.values())
        precision = self.choices.precision or "the file's precision"
        found = [Remark(f"runs on {self.stage.device} in {precision}, {graphs} batch sizes as CUDA graphs")]
        if self._problem:
            found.append(Remark(f"runs without CUDA graphs: {self._problem}", is_warning=True))
        if self.pins is not None and self.pins.problem:
            found.append(Remark(f"copies to the GPU are slower than they could be: {self.pins.problem}", True))
        return found

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the module; outputs are new arrays."""
        if self.pins is not None:
            self.pins.ensure(inputs)
        hosts = self._hosts(inputs, self.config.inputs)
        try:
            answers = self._run(hosts)
            self.device_ns = self.stage.wait()
        except Exception as error:
            check_device(error, self.stage.synchronize)
            raise
        return [_array(tensor) for tensor in answers]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """A run from shared memory, page-locked, into shared memory."""
        if self.pins is not None:
            self.pins.ensure((*inputs, *outputs))
        sources, targets = self._hosts(inputs, self.config.inputs), self._hosts(outputs, self.config.outputs)

        def run() -> None:
            try:
                self._copy_out(self._run(sources), targets)
                self.device_ns = self.stage.wait()
            except Exception as error:
                check_device(error, self.stage.synchronize)
                raise

        return run

    def close(self) -> None:
        """Unlock the memory and let go of the module."""
        if self.pins is not None:
            self.pins.release()
        self._sizes.clear()
        self.module = None

    def _hosts(self, arrays: Sequence[Array], specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
        return [
            torch.from_numpy(array).view(_DTYPES[spec.datatype]) if spec.datatype == "BF16" else torch.from_numpy(array)
            for array, spec in zip(arrays, specs, strict=True)
        ]

    def _run(self, sources: Tensors) -> Tensors:
        """Outputs on the device, complete when the stage has been waited for."""
        with torch.inference_mode():
            size = self._size(sources)
            for target, source in zip(size.inputs, sources, strict=True):
                target.copy_(source, non_blocking=True)
            self.stage.begin()
            if size.replay is not None:
                size.replay()
                answers = size.outputs
            else:
                answers = self._start(size)
            self.stage.end()
            return answers

    def _copy_out(self, answers: Tensors, targets: Tensors) -> None:
        for spec, target, answer in zip(self.config.outputs, targets, answers, strict=True):
            if answer.shape != target.shape:
                raise InferenceFailed(
                    f"output '{spec.name}' has shape {list(answer.shape)}, the config says {list(target.shape)}"
                )
            target.copy_(answer, non_blocking=True)

    def _size(self, sources: Tensors) -> _Size:
        shapes = tuple([tuple(source.shape) for source in sources])
        size = self._sizes.get(shapes)
        if size is None:
            size = _Size([torch.empty(each.shape, dtype=each.dtype, device=self.stage.device) for each in sources])
            if len(self._sizes) < _REMEMBERED:
                self._sizes[shapes] = size
        return size

    def _start(self, size: _Size) -> Tensors:
        size.runs += 1
        if size.runs == _CAPTURE_AT and self.choices.graphs and not self._problem:
            try:
                size.replay, size.outputs = self.stage.capture(lambda: self._forward(size.inputs))
            except RuntimeError as error:  # something in it waits for the device: it runs as it is
                self._problem = str(error).partition("\n")[0]
            else:
                size.replay()
                return size.outputs
        return self._forward(size.inputs)

    def _forward(self, inputs: Tensors) -> Tensors:
        return self._stated(select_outputs(self.module(*map(self._prepared, inputs)), self.config.outputs))

    def _prepared(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the precision and memory format that the module computes in."""
        dtype = _PRECISIONS[self.choices.precision]
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if self.choices.channels_last and tensor.dim() == 4 and tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _stated(self, answers: Tensors) -> Tensors:
        """In the datatypes of the config, row by row."""
        stated = []
        for spec, answer in zip(self.config.outputs, answers, strict=True):
            dtype = _DTYPES[spec.datatype]
            if answer.dtype != dtype and not (answer.is_floating_point() and dtype.is_floating_point):
                raise InferenceFailed(f"output '{spec.name}' is {answer.dtype}, the config says {spec.datatype}")
            stated.append(answer.to(dtype).contiguous())
        return stated


def load_on_gpu(source: Source, config: ModelConfig) -> CudaTorchEngine:
    """The module of `model.pt` on the process's first GPU."""
    from efserve.engines.cuda_torch_stage import CudaStage, TorchLocker  # here, for they need a GPU

    choices = choices_of(config)
    stage = CudaStage(source.partition)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = choices.tf32
    torch.backends.cudnn.benchmark = choices.benchmark
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libtorch announces the end of torch.jit with each call
        module = torch.jit.load(str(source.file("model.pt")), map_location=stage.device).eval()  # type: ignore[no-untyped-call]  # torch
        module, choices = prepared_module(module, choices)
    pins = Pins(TorchLocker()) if choices.pinned else None
    return CudaTorchEngine(config, module, stage, choices, pins)


def prepared_module(module: Any, choices: TorchChoices) -> tuple[Any, TorchChoices]:
    """The module as the choices want it; and the choices with those off that it does not take."""
    dtype = _PRECISIONS[choices.precision]
    is_frozen = not hasattr(module, "training")  # the attribute goes with freezing
    if is_frozen and dtype is not None:
        raise LoadFailed(
            f"the module is frozen, so its weights cannot be turned into {choices.precision}; leave the parameter "
            "precision out, or save the module without freezing it"
        )
    if dtype is not None:
        module = module.to(dtype)
    low = any(each.dtype in (torch.float16, torch.bfloat16) and each.dim() == 4 for each in module.parameters())
    if not low:
        choices = replace(choices, channels_last=False)
    elif choices.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if choices.freeze:
        try:
            module = module if is_frozen else torch.jit.freeze(module)
        except RuntimeError:  # it changes its own weights: it runs as it is
            choices = replace(choices, freeze=False)
    if choices.optimize:
        module = torch.jit.optimize_for_inference(module)
    return module, choices


def select_outputs(answer: object, specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """The tensors of the config's outputs: by name from a dict, else by position. InferenceFailed where one lacks."""
    if isinstance(answer, torch.Tensor):
        answer = (answer,)
    if isinstance(answer, Mapping):
        missing = [spec.name for spec in specs if spec.name not in answer]
        if missing:
            raise InferenceFailed(f"output '{missing[0]}' is missing; the model returned {list(answer)}")
        answer = [answer[spec.name] for spec in specs]
    if not isinstance(answer, tuple | list):
        raise InferenceFailed(f"the model returned {type(answer).__name__}, expected a tensor or several")
    if len(answer) < len(specs):
        raise InferenceFailed(
            f"output '{specs[len(answer)].name}' is missing; the model returned {len(answer)} tensors, "
            f"the config lists {len(specs)} outputs"
        )
    for tensor in answer[: len(specs)]:
        if not isinstance(tensor, torch.Tensor):
            raise InferenceFailed(f"the model returned {type(tensor).__name__} among its outputs, expected tensors")
    return list(answer[: len(specs)])


def _array(tensor: torch.Tensor) -> Array:
    host = tensor.cpu()
    array: Array = (host.view(torch.uint16) if host.dtype is torch.bfloat16 else host).numpy()
    return array
