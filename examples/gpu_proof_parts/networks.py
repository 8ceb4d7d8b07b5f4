"""Networks by efserve's TorchScript engine, against plain torch and against the device's matrix peak."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from efserve.engines.cuda_torch import CudaTorchEngine, TorchChoices, prepared_module
from efserve.model_config import ModelConfig
from efserve.tensors import Array, TensorSpec
from efserve.transport.arena import Area
from gpu_proof_parts import models
from gpu_proof_parts.kernels import measured_peak
from gpu_proof_parts.rows import Row, Scale
from gpu_proof_parts.timing import device_ms, wall_ms

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_SWITCHES: tuple[tuple[str, dict[str, bool]], ...] = (
    ("all as by default", {}),
    ("without CUDA graphs", {"graphs": False}),
    ("without channels-last", {"channels_last": False}),
    ("without freezing", {"freeze": False}),
    ("with optimize_for_inference", {"optimize": True}),
    ("without page-locking", {"pinned": False}),
    ("without cuDNN trying kernels", {"benchmark": False}),
)


class HostStage:
    """The CPU in the GPU's place, for trying the script."""

    device = torch.device("cpu")

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def wait(self) -> int:
        return 0

    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], Any]) -> Any:
        raise RuntimeError("a CPU has no graphs")


def resnet50(scale: Scale) -> Iterator[Row]:
    """Each batch: device time of the engine and of eager torch, as parts of the peak; what copies and Python add."""
    peak = measured_peak(scale, _DTYPES[scale.precision])
    yield Row("resnet50", f"matrix peak in {scale.precision}", peak, "TFLOP/s")
    config = image_config(scale)
    engine = _engine(scale, models.resnet50(scale.cpu), config, TorchChoices(scale.precision))
    eager = models.resnet50(scale.cpu).to(scale.device, _DTYPES[scale.precision])
    eager = eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    work = _flops(eager, torch.zeros(1, 3, scale.image, scale.image, dtype=_DTYPES[scale.precision]).to(scale.device))
    yield Row("resnet50", "work of one image", work / 1e9, "GFLOP")
    for batch in scale.image_batches:
        run, _ = _bound(engine, scale, batch, config)
        total_ms, device = _engine_ms(engine, run, scale)
        images = torch.zeros(batch, 3, scale.image, scale.image, device=scale.device, dtype=_DTYPES[scale.precision])
        images = images.to(memory_format=torch.channels_last)
        eager_ms = device_ms(_inference(eager, images), scale)
        part = 100 * batch * work / device / 1e9 / peak
        rate = 1e3 * batch / device
        note = f"{part:.1f} % of the peak, {rate:,.0f}/s; eager {eager_ms:.3f} ms, {eager_ms / device:.2f} x"
        yield Row("resnet50", f"batch {batch}, device time", device, "ms", note)
        added = f"copies, launch and Python add {1e3 * (total_ms - device):.0f} us"
        yield Row("resnet50", f"batch {batch}, arena to arena", total_ms, "ms", added)
    yield from _remarks("resnet50", engine)


def bert(scale: Scale) -> Iterator[Row]:
    """Question answering: device time of the engine and of eager torch."""
    length = scale.text_length
    inputs = tuple(TensorSpec(name, "INT64", (length,)) for name in ("ids", "mask", "segments"))
    outputs = tuple(TensorSpec(name, "FP32", (length,)) for name in ("start", "end"))
    config = ModelConfig("bert", "torchscript", max(scale.text_batches), inputs, outputs)
    engine = _engine(scale, models.bert(scale.cpu), config, TorchChoices(scale.precision))
    eager = models.bert(scale.cpu).to(scale.device, _DTYPES[scale.precision])
    for batch in scale.text_batches:
        run, arrays = _bound(engine, scale, batch, config)
        total_ms, device = _engine_ms(engine, run, scale)
        eager_ms = device_ms(_inference(eager, *(torch.from_numpy(array).to(scale.device) for array in arrays)), scale)
        note = f"eager {eager_ms:.3f} ms: {eager_ms / device:.2f} x; arena to arena {total_ms:.3f} ms"
        yield Row("bert", f"batch {batch} of {length} words, device time", device, "ms", note)
    plain = _engine(scale, models.bert(scale.cpu), config, TorchChoices(scale.precision, graphs=False))
    for batch in scale.text_batches[:2]:
        (with_ms, _), (without_ms, _) = (
            _engine_ms(each, _bound(each, scale, batch, config)[0], scale) for each in (engine, plain)
        )
        note = f"{without_ms / with_ms:.2f} x the {with_ms:.3f} ms with them"
        yield Row("bert", f"batch {batch}, without CUDA graphs", without_ms, "ms", note)
    yield from _remarks("bert", engine)


def choices(scale: Scale) -> Iterator[Row]:
    """What each choice of the engine is worth, one switched at a time."""
    config = image_config(scale)
    for batch in (1, 2) if scale.cpu else (1, 32):
        base_ms = 0.0
        for name, switched in _SWITCHES:
            chosen = replace(TorchChoices(scale.precision), **switched)  # type: ignore[arg-type]  # they are bool
            engine = _engine(scale, models.resnet50(scale.cpu), config, chosen)
            run, _ = _bound(engine, scale, batch, config)
            total_ms, device = _engine_ms(engine, run, scale)
            base_ms = base_ms or total_ms
            note = f"{total_ms / base_ms:.2f} x the default; device time {device:.3f} ms"
            yield Row("choices", f"batch {batch}, {name}", total_ms, "ms", note)
            engine.close()


def image_config(scale: Scale) -> ModelConfig:
    """Of resnet50, with FP32 images as clients send them."""
    inputs = (TensorSpec("image", "FP32", (3, scale.image, scale.image)),)
    outputs = (TensorSpec("scores", "FP32", (1000,)),)
    return ModelConfig("resnet50", "torchscript", max(scale.image_batches), inputs, outputs)


def scripted(module: torch.nn.Module) -> Any:
    """TorchScript of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libtorch announces the end of torch.jit with each call
        return torch.jit.script(module)


def _engine(scale: Scale, module: torch.nn.Module, config: ModelConfig, chosen: TorchChoices) -> CudaTorchEngine:
    if scale.cpu:
        stage: Any = HostStage()
        pins = None
        chosen = replace(chosen, graphs=False)
    else:
        from efserve.engines.cuda_pins import Pins
        from efserve.engines.cuda_torch_stage import CudaStage, TorchLocker
        from efserve.partition import Partition

        stage = CudaStage(Partition(device="cuda"))
        pins = Pins(TorchLocker()) if chosen.pinned else None
        torch.backends.cudnn.benchmark = chosen.benchmark
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared, chosen = prepared_module(scripted(module).to(stage.device), chosen)
    return CudaTorchEngine(config, prepared, stage, chosen, pins)


def _bound(
    engine: CudaTorchEngine, scale: Scale, batch: int, config: ModelConfig
) -> tuple[Callable[[], object], list[Array]]:
    """A run from the arena into the arena, warmed up to its graph; and its inputs."""
    arrays, outputs = (
        [_in_arena((batch, *spec.dims), "i8" if spec.datatype == "INT64" else "f4") for spec in specs]
        for specs in (config.inputs, config.outputs)
    )
    for array in arrays:
        array[...] = 1
    run = engine.bind(arrays, outputs)
    assert run is not None
    for _ in range(engine.warmup_runs + 1):
        run()
    return run, arrays


def _in_arena(shape: tuple[int, ...], dtype: str) -> Array:
    size = int(np.prod(shape))
    area = Area.create()
    area.reserve(size * np.dtype(dtype).itemsize)
    array: Array = np.frombuffer(area.map, dtype, size).reshape(shape)
    return array


def _engine_ms(engine: CudaTorchEngine, run: Callable[[], object], scale: Scale) -> tuple[float, float]:
    """Median time of a run with its copies, and of its part on the device by the engine's own measure."""
    on_device: list[int] = []

    def timed() -> None:
        run()
        on_device.append(engine.device_ns)

    total_ms = wall_ms(timed, scale)
    return total_ms, float(np.median(on_device)) / 1e6 or total_ms


def _inference(module: Callable[..., object], *inputs: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _flops(module: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*inputs)
    return float(counter.get_total_flops())


def _remarks(section: str, engine: CudaTorchEngine) -> Iterator[Row]:
    for remark in engine.remarks:
        yield Row(section, "the engine says", note=remark.text)
