"""What the device itself can do: its facts, its matrix peak, its bus."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from gpu_proof_parts.rows import Row, Scale
from gpu_proof_parts.timing import device_ms, wall_ms

_PCIE_GB_S = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # each lane's, each way, behind its coding


def machine(scale: Scale) -> Iterator[Row]:
    """Which device and libraries."""
    yield Row("machine", "python", note=sys.version.split()[0])
    yield Row("machine", "torch", note=f"{torch.__version__}, CUDA {torch.version.cuda}")
    if scale.cpu:
        yield Row("machine", "device", note="the CPU, with tiny sizes: this proves the script, not a GPU")
        return
    facts = torch.cuda.get_device_properties(0)
    yield Row("machine", "device", note=f"{facts.name}, compute capability {facts.major}.{facts.minor}")
    yield Row("machine", "SMs", facts.multi_processor_count)
    yield Row("machine", "memory", facts.total_memory / 2**30, "GiB")
    from efserve.devices.gpu import gpu_facts

    found = gpu_facts()
    yield Row("machine", "driver", note=found.problem or f"{found.driver_version}, CUDA {found.cuda_version}")
    for gpu in found.gpus:
        yield Row("machine", f"gpu{gpu.index}", note=f"{gpu.uuid}, {gpu.compute_mode}, MIG {gpu.mig_enabled}")


def matrix_peak(scale: Scale) -> Iterator[Row]:
    """Matrix products in each precision: the peak that networks are compared with."""
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        if scale.cpu and name == "fp16":
            continue  # which few processors have
        yield Row("matrix", f"{name}, {scale.matrix} squared", measured_peak(scale, dtype), "TFLOP/s")


def measured_peak(scale: Scale, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    side = scale.matrix
    a, b = (torch.randn(side, side, device=scale.device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=scale.device, dtype=dtype)
    return 2 * side**3 / device_ms(lambda: torch.matmul(a, b, out=out), scale) / 1e9


def staging(scale: Scale) -> Iterator[Row]:
    """Copies between the arena's shared memory and the device, page-locked and not, against the bus."""
    from efserve.engines.cuda_pins import Pins
    from efserve.transport.arena import Area

    bus = None if scale.cpu else _bus_gb_s()
    if bus is not None:
        yield Row("staging", "PCIe, each way, in theory", bus, "GB/s")
    for size_mb in (1,) if scale.cpu else (1, 16, 256):
        size_bytes = size_mb << 20
        area = Area.create()
        area.reserve(size_bytes)
        host = np.frombuffer(area.map, np.uint8, size_bytes)
        on_device = torch.empty(size_bytes, dtype=torch.uint8, device=scale.device)
        pins = None if scale.cpu else Pins(_locker())
        for locked in (False,) if pins is None else (False, True):
            if locked and pins is not None and not pins.ensure([host]):
                yield Row("staging", "page-locking the arena", note=pins.problem, failed=True)
                continue
            view = torch.from_numpy(host)
            for way, ends in (("to", (on_device, view)), ("from", (view, on_device))):
                rate = size_bytes / wall_ms(_copy(*ends), scale) / 1e6
                part = f"{100 * rate / bus:.0f} % of the bus" if bus else ""
                kind = "page-locked" if locked else "as it is"
                yield Row("staging", f"{size_mb} MiB {way} the device, arena {kind}", rate, "GB/s", part)
        if pins is not None:
            pins.release()
        area.close()


def _copy(target: torch.Tensor, source: torch.Tensor) -> Callable[[], object]:
    return lambda: target.copy_(source, non_blocking=True)


def _locker() -> Any:
    from efserve.engines.cuda_torch_stage import TorchLocker

    return TorchLocker()


def _bus_gb_s() -> float | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        generation = pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)
        lanes = pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle)
    except pynvml.NVMLError:
        return None
    return _PCIE_GB_S.get(generation, 0.0) * lanes or None
