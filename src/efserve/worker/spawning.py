"""Starts programs while the process goes on: by a thread of its own that holds no lock of the interpreter meanwhile.

`subprocess` holds that lock until the program is there, which on busy processors takes as long as several batches.
All programs are started by one thread, which lives as long as the process: they may ask the kernel to end with it.
"""

import ctypes
import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from efserve.worker.slices import LONG_MS, set_slices

_SETSIGDEF, _SETSID = 0x04, 0x80  # flags of spawn.h
_OPAQUE_BYTES = 512  # more than any of its types has
_DEFAULT_AGAIN = (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores


def spawn(
    arguments: Sequence[str], *, environment: Mapping[str, str], standard: tuple[int, int, int], fds: Sequence[int]
) -> "Future[int]":
    """The pid of a new process that leads a session; the future raises OSError where it cannot be started.

    `standard` are its standard input, output and errors, `fds` what else it has, by the same numbers. All must be above
    2, and open until the future is done.
    """
    if min((*standard, *fds)) < 3:
        raise OSError(errno.EBADF, "the standard descriptors of this process are closed")
    return _thread().submit(_spawn, tuple(arguments), dict(environment), standard, tuple(fds))


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="spawn")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _spawn(
    arguments: tuple[str, ...], environment: dict[str, str], standard: tuple[int, int, int], fds: tuple[int, ...]
) -> int:
    set_slices(LONG_MS, threads=(0,))  # of this thread, and so of the new process
    libc = _libc()
    actions, attributes, defaults = (ctypes.create_string_buffer(_OPAQUE_BYTES) for _ in range(3))
    pid = ctypes.c_int()
    _check(libc.posix_spawn_file_actions_init(actions))
    _check(libc.posix_spawnattr_init(attributes))
    try:
        for target, source in (*enumerate(standard), *((fd, fd) for fd in fds)):  # onto itself: it is kept open
            _check(libc.posix_spawn_file_actions_adddup2(actions, source, target))
        libc.sigemptyset(defaults)
        for number in _DEFAULT_AGAIN:
            libc.sigaddset(defaults, int(number))
        _check(libc.posix_spawnattr_setsigdefault(attributes, defaults))
        _check(libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSIGDEF | _SETSID)))
        path = os.fsencode(arguments[0])
        words = _strings(arguments)
        variables = _strings(f"{name}={value}" for name, value in environment.items())
        _check(libc.posix_spawn(ctypes.byref(pid), path, actions, attributes, words, variables))
    finally:
        libc.posix_spawn_file_actions_destroy(actions)
        libc.posix_spawnattr_destroy(attributes)
    return pid.value


def _strings(texts: Iterable[str]) -> "ctypes.Array[ctypes.c_char_p]":
    encoded = [os.fsencode(text) for text in texts]
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded)  # which ends with a null pointer


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
