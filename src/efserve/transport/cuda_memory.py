"""Memory of a GPU that another process shares by an IPC handle: opened, copied from and to, closed.

The first handle gives this process a
context on the GPU, which costs a few hundred megabytes there; without one, nothing of this is loaded. Functions as in
the driver API's chapters "Primary Context Management" and "Memory Management". Not run on a GPU yet.
"""

import ctypes
from functools import cache
from typing import Protocol

from efserve.inference import Buffer
from efserve.libcuda import Libcuda, open_libcuda

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the one flag that cuIpcOpenMemHandle knows


class Driver(Protocol):
    """What is needed of the driver; every call raises OSError with the driver's words."""

    def open(self, handle: bytes, device_id: int) -> int:
        """The address of shared memory in this process."""

    def read(self, address: int, device_id: int, target: memoryview) -> None: ...
    def write(self, address: int, device_id: int, data: Buffer) -> None: ...
    def close(self, address: int, device_id: int) -> None: ...


class CudaMemory:
    """Shared memory of one GPU, open until this object's end."""

    def __init__(self, driver: Driver, handle: bytes, device_id: int, size_bytes: int) -> None:
        """Raises OSError where it cannot be opened."""
        self._address: int | None = None
        if len(handle) != HANDLE_BYTES:
            raise OSError(f"the handle has {len(handle)} bytes, expected {HANDLE_BYTES}")
        if size_bytes < 1:
            raise OSError(f"byte_size is {size_bytes}, expected 1 or more")
        self._driver = driver
        self._device_id = device_id
        self.size_bytes = size_bytes
        self._address = driver.open(handle, device_id)

    def __repr__(self) -> str:
        return f"<CudaMemory {self.size_bytes} bytes on device {self._device_id}>"

    def __del__(self) -> None:
        if self._address is not None:
            self._driver.close(self._address, self._device_id)

    def read(self, offset: int, target: memoryview) -> bool:
        """Fill the target from there; False where the driver does not."""
        assert self._address is not None
        try:
            self._driver.read(self._address + offset, self._device_id, target)
        except OSError:
            return False
        return True

    def write(self, offset: int, data: Buffer) -> None:
        """Copy the data there; OSError where the driver does not."""
        assert self._address is not None
        self._driver.write(self._address + offset, self._device_id, data)


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class CudaDriver:
    """The driver, with the primary contexts of the GPUs that have been used."""

    def __init__(self, libcuda: Libcuda) -> None:
        self._call = libcuda.call
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def open(self, handle: bytes, device_id: int) -> int:
        """See `Driver`."""
        self._enter(device_id)
        address = ctypes.c_uint64()
        shared = _Handle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), shared, _LAZY_PEER_ACCESS)
        return address.value

    def read(self, address: int, device_id: int, target: memoryview) -> None:
        """See `Driver`."""
        self._enter(device_id)
        place = (ctypes.c_char * len(target)).from_buffer(target)
        self._call("cuMemcpyDtoH_v2", place, ctypes.c_uint64(address), ctypes.c_size_t(len(target)))

    def write(self, address: int, device_id: int, data: Buffer) -> None:
        """See `Driver`."""
        self._enter(device_id)
        copied = bytes(data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), copied, ctypes.c_size_t(len(copied)))

    def close(self, address: int, device_id: int) -> None:
        """See `Driver`."""
        self._enter(device_id)
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _enter(self, device_id: int) -> None:
        """Make the device's primary context this thread's."""
        if device_id not in self._contexts:
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(device), device_id)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts[device_id] = context
        self._call("cuCtxSetCurrent", self._contexts[device_id])


@cache
def cuda_driver() -> CudaDriver | None:
    """The driver of this machine's GPUs; None where there is none."""
    try:
        return CudaDriver(open_libcuda())
    except OSError:
        return None
