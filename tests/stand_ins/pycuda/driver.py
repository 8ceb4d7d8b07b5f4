"""Stand-in for `pycuda.driver`: the host's memory plays the GPU's, and what is enqueued is done at once.

Names and arguments as in pycuda's `wrap_cudadrv.cpp`, 2026.
"""

import ctypes
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[Any]


def init(flags: int = 0) -> None:
    """Nothing to start."""


class Context:
    """A context; pushed and popped."""

    depth = 0

    def push(self) -> None:
        """Make it current."""
        Context.depth += 1

    @staticmethod
    def pop() -> None:
        """Make the one before current."""
        Context.depth -= 1

    @staticmethod
    def attach(flags: int = 0) -> "Context":
        """The one that is current."""
        return Context()

    @staticmethod
    def synchronize() -> None:
        """Nothing to wait for."""

    def detach(self) -> None:
        """Let it go."""


class Device:
    """The one GPU."""

    def __init__(self, number: int) -> None:
        assert number == 0

    @staticmethod
    def count() -> int:
        """One."""
        return 1

    def name(self) -> str:
        """As NVIDIA writes names."""
        return "Stand-in GPU"

    def compute_capability(self) -> tuple[int, int]:
        """Of the stand-in."""
        return (9, 0)

    def retain_primary_context(self) -> Context:
        """The context that all libraries share."""
        return Context()


class Stream:
    """A queue that is always empty."""

    def __init__(self, flags: int = 0) -> None:
        self.handle = id(self)

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Event:
    """A moment."""

    def __init__(self, flags: int = 0) -> None:
        self._at_s = 0.0

    def record(self, stream: Stream | None = None) -> "Event":
        """Now."""
        self._at_s = monotonic()
        return self

    def synchronize(self) -> "Event":
        """It has been."""
        return self

    def time_till(self, event: "Event") -> float:
        """Milliseconds."""
        return 1e3 * (event._at_s - self._at_s)


class DeviceAllocation:
    """Memory of the GPU, which is an int to whoever asks."""

    def __init__(self, size: int) -> None:
        self._memory: ctypes.Array[ctypes.c_char] | None = ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        assert self._memory is not None
        return ctypes.addressof(self._memory)

    def free(self) -> None:
        """Give it back."""
        self._memory = None


def mem_alloc(bytes: int) -> DeviceAllocation:
    """Memory of the GPU."""
    return DeviceAllocation(bytes)


def memcpy_htod_async(dest: int, src: Bytes, stream: Stream | None = None) -> None:
    """Copy to the GPU."""
    assert src.flags.c_contiguous
    ctypes.memmove(int(dest), src.ctypes.data, src.nbytes)


def memcpy_dtoh_async(dest: Bytes, src: int, stream: Stream | None = None) -> None:
    """Copy from the GPU."""
    assert dest.flags.c_contiguous
    ctypes.memmove(dest.ctypes.data, int(src), dest.nbytes)


def pagelocked_empty(shape: tuple[int, ...], dtype: npt.DTypeLike, order: str = "C", mem_flags: int = 0) -> Bytes:
    """Memory of the host."""
    return np.empty(shape, dtype)
