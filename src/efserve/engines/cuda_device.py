"""A GPU by its driver alone: memory, copies, marks and one stream, in the context that is current.

For runtimes that bring no CUDA binding to Python. Names and arguments are those of the CUDA Driver API 12 and 13. Never
run on hardware so far.
"""

import ctypes

from efserve.libcuda import Libcuda
from efserve.tensors import Array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream
_NS_PER_MS = 1e6


class DriverDevice:
    """The process's one GPU; its context must be current in the calling thread."""

    kind = "cuda"

    def __init__(self, libcuda: Libcuda) -> None:
        self._ask = libcuda.call
        self._stream = ctypes.c_void_p()
        self._ask("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream: int = self._stream.value or 0
        self._marks = (ctypes.c_void_p(), ctypes.c_void_p())
        for each in self._marks:
            self._ask("cuEventCreate", ctypes.byref(each), ctypes.c_uint(0))
        self._allocations: list[int] = []

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address."""
        found = ctypes.c_uint64()
        self._ask("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(size_bytes))
        self._allocations.append(found.value)
        return found.value

    def copy_in(self, address: int, source: Array) -> None:
        """From the host to the device; truly asynchronous only from page-locked memory."""
        host, size = ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes)
        self._ask("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), host, size, self._stream)

    def copy_out(self, target: Array, address: int) -> None:
        """From the device to the host."""
        host, size = ctypes.c_void_p(target.ctypes.data), ctypes.c_size_t(target.nbytes)
        self._ask("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(address), size, self._stream)

    def mark(self, number: int) -> None:
        """Note the device's time when the stream comes here: 0 before, 1 behind what is to be measured."""
        self._ask("cuEventRecord", self._marks[number], self._stream)

    def wait(self) -> int:
        """Wait for the stream; nanoseconds between the marks."""
        self._ask("cuStreamSynchronize", self._stream)
        elapsed_ms = ctypes.c_float()
        self._ask("cuEventElapsedTime", ctypes.byref(elapsed_ms), *self._marks)
        return int(_NS_PER_MS * elapsed_ms.value)

    def synchronize(self) -> None:
        """Wait for everything on the device; OSError where it is lost."""
        self._ask("cuCtxSynchronize")

    def close(self) -> None:
        """Give back memory, marks and stream; after what uses the stream."""
        for address in self._allocations:
            self._ask("cuMemFree_v2", ctypes.c_uint64(address))
        self._allocations.clear()
        for each in self._marks:
            self._ask("cuEventDestroy_v2", each)
        self._ask("cuStreamDestroy_v2", self._stream)
