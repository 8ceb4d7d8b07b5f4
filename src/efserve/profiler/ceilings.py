"""Measures the ceilings of the host's CPU with onnxruntime, on the cores and threads that a worker would get.

Peak: products of square matrices with a constant, of several sizes. Bandwidth: adding two vectors (two reads, a
write) and a vector times a matrix (a read), larger than the last-level cache, and within it. Each ceiling is the best
of all repetitions: what disturbs a measurement only makes it slower, and a bound must not be too low.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from efserve.devices.cpu import HostCpu
from efserve.roofline import FP32, Ceiling, Ceilings
from efserve.tensors import Array

BUDGET_S = 1.0  # for a ceiling
LONGEST_S = 3.0  # where others use the cores meanwhile
UNDISTURBED_PCT = 95.0  # of the cores' time
TURN_S = 0.03  # of one kernel at one size; they take turns, so that a short disturbance does not hit one alone
PEAK_SIZES = (256, 384, 512, 1024, 1536)
DEFAULT_CACHE_BYTES = 32 << 20  # where the kernel does not tell
BEYOND_CACHE = 4  # times its size
MOST_BYTES = 2 << 30  # of one kernel
MATRIX_ROWS = 256

Run = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Precision:
    operator: str
    data: type[np.generic]
    weights: type[np.generic]
    result: type[np.generic]


_PRECISIONS = {
    FP32: _Precision("MatMul", np.float32, np.float32, np.float32),
    "FP64": _Precision("MatMul", np.float64, np.float64, np.float64),
    "INT8": _Precision("MatMulInteger", np.uint8, np.int8, np.int32),
}


def measure_cpu(cpu: HostCpu, cores: Sequence[int], precisions: Collection[str]) -> Ceilings:
    """The ceilings of these cores with a thread on each, in FP32 and in those of `precisions` that a CPU computes in.

    Takes some four seconds, up to ten on a busy machine, and at most twice MOST_BYTES or half of the free memory.
    """
    cache_bytes = _last_level_bytes(cpu)
    with _on(cores):
        kernels = _Kernels(len(cores))
        peaks = {name: kernels.peak(_PRECISIONS[name]) for name in _PRECISIONS if name == FP32 or name in precisions}
        beyond = BEYOND_CACHE * (cache_bytes or DEFAULT_CACHE_BYTES)
        memory = kernels.bandwidth((min(beyond, MOST_BYTES, cpu.memory_available_bytes // 4),))
        cache = kernels.bandwidth([cache_bytes // part for part in (2, 4, 8)]) if cache_bytes else None
    threads = "1 thread" if len(cores) == 1 else f"{len(cores)} threads"
    return Ceilings(
        device=cpu.model,
        part=f"{len(cores)} of {cpu.usable_cores} cores, {threads}",
        library=f"onnxruntime {onnxruntime.__version__}",
        peaks=peaks,
        memory=memory,
        cache=cache,
        cache_bytes=cache_bytes,
        measured_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def _last_level_bytes(cpu: HostCpu) -> int:
    """All caches of the last level together; 0 where the kernel tells none."""
    holding_data = [cache for cache in cpu.caches if cache.kind != "instruction"]
    last = max(holding_data, key=lambda cache: cache.level, default=None)
    return 0 if last is None else last.size_bytes * last.count


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and those that it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class _Kernel:
    how: str
    amount: float  # operations or bytes of one run
    run: Run


@dataclass(frozen=True, slots=True)
class _Kernels:
    """Models of a single operator, run on so many threads."""

    threads: int

    def peak(self, precision: _Precision) -> Ceiling:
        """Operations/s at the size of matrix that is fastest."""
        kernels = []
        for size in PEAK_SIZES:
            data, weights = (np.ones((size, size), dtype) for dtype in (precision.data, precision.weights))
            run = self._session(precision.operator, (data,), weights, np.empty((size, size), precision.result))
            kernels.append(_Kernel(f"{precision.operator} of {size} x {size} matrices", 2 * size**3, run))
        return _best(kernels, self.threads)

    def bandwidth(self, sizes_bytes: Sequence[int]) -> Ceiling:
        """Bytes/s of the kernel and the number of bytes that are fastest."""
        kernels = []
        for size_bytes in sizes_bytes:
            amount = f"{size_bytes / 1e6:.0f} MB"
            kernels.append(_Kernel(f"sum of two vectors, {amount}", size_bytes, self._sum(size_bytes)))
            kernels.append(_Kernel(f"vector times matrix, {amount}", size_bytes, self._read(size_bytes)))
        return _best(kernels, self.threads)

    def _sum(self, size_bytes: int) -> Run:
        a, b, result = (np.ones(size_bytes // 12, np.float32) for _ in range(3))
        return self._session("Add", (a, b), None, result)

    def _read(self, size_bytes: int) -> Run:
        columns = size_bytes // 4 // MATRIX_ROWS
        matrix = np.ones((MATRIX_ROWS, columns), np.float32)
        return self._session("MatMul", (matrix[:, 0].copy(), matrix), None, np.ones(columns, np.float32))

    def _session(self, operator: str, data: Sequence[Array], constant: Array | None, result: Array) -> Run:
        """Runs y = operator(data..., constant); the constant is part of the model, as weights are."""
        names = [f"x{at}" for at in range(len(data))]
        weights = [] if constant is None else [numpy_helper.from_array(constant, "w")]
        node = helper.make_node(operator, [*names, *(weight.name for weight in weights)], ["y"])
        arrays = dict(zip((*names, "y"), (*data, result), strict=True))
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        graph = helper.make_graph([node], "ceiling", values[:-1], values[-1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in arrays.items():
            bind = binding.bind_output if name == "y" else binding.bind_input
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        def run(kept: dict[str, Array] = arrays) -> None:  # the binding has addresses only
            session.run_with_iobinding(binding)

        return run


def _best(kernels: Sequence[_Kernel], threads: int) -> Ceiling:
    """The kernel that does most per second, by the quickest of its runs; takes longer while others use the cores."""
    times_s: list[list[float]] = [[] for _ in kernels]
    for kernel in kernels:
        kernel.run()
    began_s, cpu_began_s, cpu_pct = time.perf_counter(), time.process_time(), 0.0
    while (elapsed_s := time.perf_counter() - began_s) < BUDGET_S or (
        elapsed_s < LONGEST_S and cpu_pct < UNDISTURBED_PCT
    ):
        for kernel, of_kernel in zip(kernels, times_s, strict=True):
            _take_turn(kernel, of_kernel)
        cpu_pct = 100 * (time.process_time() - cpu_began_s) / (time.perf_counter() - began_s) / threads
    ceilings = [
        Ceiling(kernel.amount / min(of_kernel), kernel.amount / median(of_kernel), cpu_pct, len(of_kernel), kernel.how)
        for kernel, of_kernel in zip(kernels, times_s, strict=True)
    ]
    return max(ceilings, key=lambda ceiling: ceiling.per_s)


def _take_turn(kernel: _Kernel, times_s: list[float]) -> None:
    """Run for TURN_S, at least once, and note how long each run took."""
    ends = time.perf_counter() + TURN_S
    while True:
        began = time.perf_counter()
        kernel.run()
        now = time.perf_counter()
        times_s.append(now - began)
        if now >= ends:
            return
