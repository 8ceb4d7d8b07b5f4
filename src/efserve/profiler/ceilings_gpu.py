"""Measures the ceilings of a GPU with torch: square matrix products for the peaks, copies for the bandwidths.

Always of the whole device, from this process. Not yet run on a GPU: its figures are unproved.
"""

from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from statistics import median
from typing import Any

from efserve.errors import UsageError
from efserve.roofline import FP32, Ceiling, Ceilings

PEAK_SIZES = (2048, 4096, 8192)
REPETITIONS = 10
COPIES_PER_RUN = 20  # one after the other, so that the launch of each hides behind the one before
COPIED_BYTES = 1 << 29
_PRECISIONS = {FP32: "float32", "FP64": "float64", "FP16": "float16", "BF16": "bfloat16"}


def measure_gpu(uuid: str, precisions: Collection[str]) -> Ceilings:
    """The ceilings of the GPU with this uuid, in FP32 and in those of `precisions` that torch multiplies in.

    Raises UsageError without a torch that sees this GPU.
    """
    try:
        import torch
    except ImportError as exc:
        raise UsageError("a GPU's ceilings are measured with torch: pip install 'efserve[torch]'") from exc
    return measure_with(torch, uuid, precisions)


def measure_with(torch: Any, uuid: str, precisions: Collection[str]) -> Ceilings:
    """The same with a given torch, which the tests have a stand-in for."""
    device = _device(torch, uuid)
    properties = torch.cuda.get_device_properties(device)
    # onnxruntime multiplies FP32 in TF32 unless it is told not to
    torch.backends.cuda.matmul.allow_tf32 = True
    wanted = {name: dtype for name, dtype in _PRECISIONS.items() if name == FP32 or name in precisions}
    with torch.inference_mode():
        peaks = {name: _peak(torch, device, dtype) for name, dtype in wanted.items()}
        memory = _copy(torch, device, min(COPIED_BYTES, properties.total_memory // 8))
        cache_bytes = int(getattr(properties, "L2_cache_size", 0))
        cache = _copy(torch, device, cache_bytes // 8) if cache_bytes else None
    return Ceilings(
        device=str(properties.name),
        part=f"the whole device, {properties.multi_processor_count} SMs",
        library=f"torch {torch.__version__}",
        peaks=peaks,
        memory=memory,
        cache=cache,
        cache_bytes=cache_bytes,
        measured_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def _device(torch: Any, uuid: str) -> Any:
    for index in range(torch.cuda.device_count()):
        if uuid.endswith(str(torch.cuda.get_device_properties(index).uuid)):
            return torch.device("cuda", index)
    raise UsageError(f"torch {torch.__version__} does not see GPU {uuid}, whose ceilings are measured with it")


def _peak(torch: Any, device: Any, dtype: str) -> Ceiling:
    found = []
    for size in PEAK_SIZES:
        a, b = (torch.ones((size, size), dtype=getattr(torch, dtype), device=device) for _ in range(2))
        how = f"product of {size} x {size} matrices{', TF32 allowed' if dtype == 'float32' else ''}"
        found.append(_best(torch, partial(torch.mm, a, b), 2 * size**3, how))
    return max(found, key=lambda ceiling: ceiling.per_s)


def _copy(torch: Any, device: Any, size_bytes: int) -> Ceiling:
    source, target = (torch.ones(size_bytes, dtype=torch.uint8, device=device) for _ in range(2))

    def run() -> None:
        for _ in range(COPIES_PER_RUN):
            target.copy_(source)

    return _best(torch, run, 2 * size_bytes * COPIES_PER_RUN, f"copy of {size_bytes / 1e6:.0f} MB")


def _best(torch: Any, run: Callable[[], object], amount: float, how: str) -> Ceiling:
    run()
    times_s = []
    for _ in range(REPETITIONS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times_s.append(began.elapsed_time(ended) / 1000)
    return Ceiling(amount / min(times_s), amount / median(times_s), 100.0, REPETITIONS, how)
