"""The library of the CUDA driver, by ctypes: a call, and its result checked. Which calls there are, its users know.

Needs nothing of CUDA but the driver. Never run on a GPU by this project.
"""

import ctypes
from collections.abc import Callable
from typing import Protocol

_NAME = "libcuda.so.1"


class Library(Protocol):
    """libcuda.so by ctypes, or a stand-in with its functions; each returns a CUresult."""

    def __getattr__(self, name: str) -> Callable[..., int]: ...


class Libcuda:
    """The driver, initialised."""

    def __init__(self, library: Library) -> None:
        """Raises OSError where it has no GPU for this process."""
        self._library = library
        self.call("cuInit", ctypes.c_uint(0))

    def call(self, name: str, *arguments: object) -> None:
        """Call a function; OSError with the driver's words where it fails or is not there."""
        self.check(name, self.function(name)(*arguments))

    def function(self, name: str) -> Callable[..., int]:
        """A function that returns a CUresult; OSError where this driver is too old for it."""
        try:
            found: Callable[..., int] = getattr(self._library, name)
        except AttributeError as exc:
            raise OSError(f"the NVIDIA driver has no {name}") from exc
        return found

    def check(self, name: str, result: int) -> None:
        """Raises OSError for any result but success."""
        if result:
            text = ctypes.c_char_p()
            known = self._library.cuGetErrorString(ctypes.c_int(result), ctypes.byref(text)) == 0
            said = (text.value or b"").decode("utf-8", "replace") if known else ""
            raise OSError(f"{name}: {said or 'unknown error'} (error {result})")


def open_libcuda(name: str = _NAME) -> Libcuda:
    """The machine's driver; OSError where there is none, or no GPU for this process."""
    return Libcuda(ctypes.CDLL(name))
