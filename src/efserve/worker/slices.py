"""How long a thread keeps a core before another that waits may have it: long for workers, so that others wait less.

Since Linux 6.12 a thread that wakes up takes the core from one with longer slices at once. From one with the same
slices it may have to wait for the next tick of the clock, up to 4 ms, where it uses more than its even part of the
core, as a gateway under load does. A worker computes for milliseconds on end; the gateway and the clients do little at
a time, and somebody waits for each of them. Older kernels take no notice (sched(7), sched_setattr(2)).
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from time import process_time_ns

LONG_MS = 20.0
_WORTH_NS = 1_000_000  # a batch that keeps a core for less, which is about a usual slice, makes hardly anybody wait
_CONVINCING = 4  # batches in a row
_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # of the system calls sched_setattr, sched_getattr
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


class Turns:
    """The slices of a worker: long ones for its load and its end, and between them while its batches are long."""

    def __init__(self) -> None:
        set_slices(LONG_MS)
        self._are_long: bool | None = None  # who had it give way for its load may have changed them
        self._others = 0  # batches in a row that ask for the other slices
        self._was_ns = process_time_ns()

    def after_batch(self) -> None:
        """Count what this process has computed since the last batch."""
        now_ns = process_time_ns()
        is_long = now_ns - self._was_ns >= _WORTH_NS
        self._was_ns = now_ns
        if is_long is self._are_long:
            self._others = 0
            return
        self._others += 1
        if self._others == _CONVINCING:
            set_slices(LONG_MS if is_long else 0)
            self._are_long, self._others = is_long, 0

    @staticmethod
    def end() -> None:
        """No batch comes any more."""
        set_slices(LONG_MS)


def slice_ms(thread: int = 0) -> float:
    """Of a thread (0: the one that calls); 0 on kernels that do not tell. Raises OSError where it cannot be read."""
    return _attributes(thread)[5] / 1e6


def set_policy(thread: int, policy: int) -> None:
    """Move a thread to another policy of those without priorities, with the slices that it has, where it has some.

    Raises OSError where the kernel refuses.
    """
    try:
        size, _, flags, nice, _, *rest = _attributes(thread)
        _set(thread, size, policy, flags, nice, 0, *rest)
    except ProcessLookupError:
        raise
    except OSError:  # some sandboxes, and processors whose numbers we do not know, lack these calls
        os.sched_setscheduler(thread, policy, os.sched_param(0))


def set_slices(milliseconds: float, threads: Iterable[int] | None = None) -> None:
    """Of all threads of this process, or of some (0: the one that calls), and so of those that they start.

    0 is the kernel's own choice. Where the kernel does not let it, they stay as they are: only speed hangs on them.
    """
    for thread in _own_threads() if threads is None else threads:
        try:
            *head, _, deadline, period = _attributes(thread)
            _set(thread, *head, round(milliseconds * 1e6), deadline, period)
        except OSError:  # it has just ended, or may not
            continue


def _own_threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _attributes(thread: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _call(1, thread, buffer, _ATTRIBUTES.size, 0)
    return _ATTRIBUTES.unpack(buffer.raw)


def _set(thread: int, *attributes: int) -> None:
    _call(0, thread, _ATTRIBUTES.pack(*attributes), 0)


def _call(which: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc().syscall(numbers[which], *arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
