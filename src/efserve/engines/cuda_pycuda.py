"""A GPU by pycuda: memory, copies, events and one stream. Never run on hardware so far.

Uses the primary context of the process's first GPU, as every other library does: after the variables of MPS have been
set, for then the context gets its share. pycuda knows no graphs, hence the driver.
"""

from typing import Any

import pycuda.driver as cuda

from efserve.engines.cuda_driver import CudaDriver
from efserve.engines.cuda_runs import Launch
from efserve.tensors import NUMPY_DTYPES, Array, Shape


class PycudaDevice:
    """The first GPU that the process sees."""

    def __init__(self, driver: CudaDriver | None, *, keeps_context: bool = False) -> None:
        """`driver` captures graphs; without it there are none. `keeps_context`: uses the current one, a green one."""
        cuda.init()
        device = cuda.Device(0)
        self.name: str = device.name()
        self.compute_capability = ".".join(map(str, device.compute_capability()))
        self._keeps_context = keeps_context
        if keeps_context:
            self._context = cuda.Context.attach()
        else:
            self._context = device.retain_primary_context()
            self._context.push()
        self._driver = driver
        self._stream = cuda.Stream()
        self.stream: int = self._stream.handle
        self._marks = (cuda.Event(), cuda.Event())
        self._allocations: list[Any] = []

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address."""
        self._allocations.append(cuda.mem_alloc(size_bytes))
        return int(self._allocations[-1])

    def copy_in(self, address: int, source: Array) -> None:
        """From the host to the device."""
        cuda.memcpy_htod_async(address, source, self._stream)

    def copy_out(self, target: Array, address: int) -> None:
        """From the device to the host."""
        cuda.memcpy_dtoh_async(target, address, self._stream)

    def locked(self, shape: Shape, datatype: str) -> Array:
        """A page-locked array."""
        array: Array = cuda.pagelocked_empty(shape, NUMPY_DTYPES[datatype])
        return array

    def mark(self, number: int) -> None:
        """Note the device's time when the stream comes here."""
        self._marks[number].record(self._stream)

    def wait(self) -> int:
        """Wait for the stream; nanoseconds between the marks."""
        self._stream.synchronize()
        return int(1e6 * self._marks[0].time_till(self._marks[1]))

    def capture(self, work: Launch) -> Launch:
        """What `work` enqueues, as one graph; OSError where it cannot be one."""
        if self._driver is None:
            raise OSError("the CUDA driver's library could not be loaded")
        return self._driver.capture(self.stream, work)

    def synchronize(self) -> None:
        """Wait for everything on the device; an error of pycuda's where it is lost."""
        cuda.Context.synchronize()

    def close(self) -> None:
        """Give back memory and context."""
        for allocation in self._allocations:
            allocation.free()
        self._allocations.clear()
        if self._keeps_context:
            self._context.detach()
        else:
            cuda.Context.pop()  # the library lets go of a primary context with the last object that needs it
