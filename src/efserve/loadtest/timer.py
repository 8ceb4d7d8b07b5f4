"""A timer that is exact to tens of microseconds; those of the event loops count whole milliseconds."""

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_CLOSE_ON_EXEC = 0o2000000


class _Setting(ctypes.Structure):
    """`struct itimerspec`: interval, value; each seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class PreciseTimer:
    """Calls back once at a monotonic time, in the running loop: a timerfd of Linux."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._fd = -1
        self._setting = _Setting()
        self._set = ctypes.CDLL(None, use_errno=True).timerfd_settime
        self._pointer = ctypes.byref(self._setting)
        self._loop: asyncio.AbstractEventLoop

    def open(self) -> None:
        """Take the file descriptor; raises OSError where the limit of open files is reached."""
        self._fd = ctypes.CDLL(None, use_errno=True).timerfd_create(_CLOCK_MONOTONIC, _CLOSE_ON_EXEC | os.O_NONBLOCK)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._callback)

    def arm(self, time_ns: int) -> None:
        """Call at this time, at once if it is over; what was armed before is forgotten."""
        self._setting.value_s, self._setting.value_ns = divmod(max(time_ns, 1), 1_000_000_000)
        self._set(self._fd, _ABSOLUTE, self._pointer, None)

    def disarm(self) -> None:
        """Forget what was armed: without this or `arm`, a callback comes again and again."""
        self._setting.value_s = self._setting.value_ns = 0
        self._set(self._fd, _ABSOLUTE, self._pointer, None)

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
