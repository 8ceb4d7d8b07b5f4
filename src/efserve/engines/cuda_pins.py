"""Page-locks the shared memory that a batch lies in, so that the GPU copies from and to it without a stop between.

The arena is mapped once and for long, so locking a mapping when it is first seen pays: a copy from memory that is not
locked goes through a buffer of the driver first. Pure but for the `Locker`.
"""

from collections.abc import Iterable
from mmap import mmap
from typing import Protocol

import numpy as np

from efserve.tensors import Array


class Locker(Protocol):
    """What page-locks memory: the CUDA driver, or torch."""

    def lock(self, address: int, size_bytes: int) -> None:
        """Page-lock this memory of the process; OSError where that is impossible."""
        ...

    def unlock(self, address: int) -> None:
        """Undo `lock`."""
        ...


class Pins:
    """The mappings that are locked; each is kept alive until `release`."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._locked: dict[int, Array] = {}  # address -> the whole mapping as bytes
        self.problem = ""  # why a mapping could not be locked: copies of it are slower, not wrong

    def __repr__(self) -> str:
        return f"<Pins {len(self._locked)} mappings, {self.locked_bytes} bytes>"

    @property
    def locked_bytes(self) -> int:
        """How much memory is locked."""
        return sum(whole.nbytes for whole in self._locked.values())

    def ensure(self, arrays: Iterable[Array]) -> bool:
        """Lock the mapping behind each array; True when all are locked. After one failure nothing more is tried."""
        done = True
        for array in arrays:
            whole = mapping_of(array)
            if whole is None:
                done = False
            elif whole.ctypes.data not in self._locked:
                done = self._lock(whole) and done
        return done

    def release(self) -> None:
        """Unlock all."""
        for address in self._locked:
            self._locker.unlock(address)
        self._locked.clear()

    def _lock(self, whole: Array) -> bool:
        if self.problem:
            return False
        try:
            self._locker.lock(whole.ctypes.data, whole.nbytes)
        except OSError as error:
            self.problem = str(error)
            return False
        self._locked[whole.ctypes.data] = whole
        return True


def mapping_of(array: Array) -> Array | None:
    """The whole mapping that an array is a view of, as bytes; None where its memory is none, and may go any time."""
    base: object = array.base
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return np.frombuffer(base, np.uint8) if isinstance(base, mmap) else None
