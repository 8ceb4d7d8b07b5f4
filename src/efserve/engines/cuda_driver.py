"""The few calls of the CUDA driver that the libraries in use do not offer: page-locking memory, and graphs by capture.

Names, arguments and enumerations are those of the CUDA Driver API 12 and 13. Never run on hardware so far.
"""

import ctypes
from collections.abc import Callable

from efserve.libcuda import Libcuda, open_libcuda

_PORTABLE = 0x01  # CU_MEMHOSTREGISTER_PORTABLE: locked for every context of the process
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is no concern of the capture


class CudaDriver:
    """The driver with the context of the process's one GPU, which is current in the calling thread."""

    def __init__(self, libcuda: Libcuda) -> None:
        self._libcuda = libcuda
        self._ask = libcuda.call
        current = ctypes.c_void_p()
        self._ask("cuCtxGetCurrent", ctypes.byref(current))
        if not current.value:  # the primary context is the one that torch, onnxruntime and TensorRT use
            self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(current), ctypes.c_int(0))
            self._ask("cuCtxSetCurrent", current)

    def lock(self, address: int, size_bytes: int) -> None:
        """Page-lock memory of the process; OSError where the driver refuses."""
        self._ask(
            "cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE)
        )

    def unlock(self, address: int) -> None:
        """Undo `lock`."""
        self._ask("cuMemHostUnregister", ctypes.c_void_p(address))

    def synchronize(self) -> None:
        """Wait for everything on the device; OSError where it is lost."""
        self._libcuda.call("cuCtxSynchronize")

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        """A call that repeats what `work` enqueues on the stream as one graph, with the same addresses.

        OSError where something in it cannot be captured; the stream is usable again in any case.
        """
        handle, graph, runnable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._ask("cuStreamBeginCapture_v2", handle, ctypes.c_int(_THREAD_LOCAL))
        try:
            work()
        finally:
            end = self._libcuda.function("cuStreamEndCapture")
            ended = end(handle, ctypes.byref(graph))  # which also ends a broken capture
        self._libcuda.check("cuStreamEndCapture", ended)
        try:
            self._ask("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
        finally:
            self._ask("cuGraphDestroy", graph)
        return lambda: self._ask("cuGraphLaunch", runnable, handle)


def load_driver() -> CudaDriver:
    """The machine's driver; OSError where there is none, or no GPU that this process may use."""
    return CudaDriver(open_libcuda())
