"""The library of the CUDA driver, made up; and a GPU whose memory is the host's."""

import ctypes
from collections.abc import Callable

from efserve.tensors import Array


class StandInDriver:
    """Functions of libcuda.so: notes every call; one of them may fail."""

    def __init__(self, fails: str = "", has_context: bool = False) -> None:
        self.calls: list[str] = []
        self._fails = fails
        self._has_context = has_context

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            if name == "cuGetErrorString":
                target = arguments[1]._obj  # type: ignore[attr-defined]  # what ctypes.byref refers to
                target.value = b"operation not permitted when stream is capturing"
                return 0
            self.calls.append(name)
            if name == "cuCtxGetCurrent" and self._has_context:
                arguments[0]._obj.value = 1  # type: ignore[attr-defined]
            return 900 if name == self._fails else 0

        return call


class HostDevice:
    """A device for `DeviceRuns` with memory that onnxruntime's CPU provider can use; notes what is enqueued."""

    kind = "cpu"
    stream = 0
    compute_ns = 1234

    def __init__(self, is_lost: bool = False) -> None:
        self.calls: list[str] = []
        self._is_lost = is_lost
        self._memory: list[ctypes.Array[ctypes.c_char]] = []

    def allocate(self, size_bytes: int) -> int:
        self.calls.append(f"allocate {size_bytes}")
        self._memory.append(ctypes.create_string_buffer(size_bytes))
        return ctypes.addressof(self._memory[-1])

    def copy_in(self, address: int, source: Array) -> None:
        self.calls.append("in")
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def copy_out(self, target: Array, address: int) -> None:
        self.calls.append("out")
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def mark(self, number: int) -> None:
        self.calls.append(f"mark {number}")

    def wait(self) -> int:
        self.calls.append("wait")
        return self.compute_ns

    def synchronize(self) -> None:
        if self._is_lost:
            raise OSError("cuCtxSynchronize: an illegal memory access was encountered (error 700)")

    def close(self) -> None:
        self.calls.append("close")
        self._memory.clear()
