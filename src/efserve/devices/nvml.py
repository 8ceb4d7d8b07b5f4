"""NVIDIA's management library: opened once per process, asked for one value at a time.

A value that a driver or a GPU does not tell is None, never an error. `gpu.py` says what the values mean.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

NO_DRIVER = "no NVIDIA driver"


@dataclass(frozen=True, slots=True)
class Nvml:
    """pynvml or a stand-in with its functions. With a `problem` there is nothing to ask, and every answer is None."""

    library: Any
    problem: str = ""  # why there is no driver to ask, in a few words

    def ask(self, function: str, *arguments: object) -> Any | None:
        """The answer of pynvml's `function`; None where the driver, the GPU or pynvml itself does not know it."""
        call = None if self.problem else getattr(self.library, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except self.library.NVMLError:
            return None

    def count(self) -> int:
        """How many GPUs the driver knows."""
        return self.ask("nvmlDeviceGetCount") or 0

    def handles(self) -> dict[int, Any]:
        """The GPUs that can be reached, by NVML's index, which is that of nvidia-smi."""
        found = {index: self.ask("nvmlDeviceGetHandleByIndex", index) for index in range(self.count())}
        return {index: handle for index, handle in found.items() if handle is not None}


def connect(library: Any) -> Nvml:
    """Initialises a library with pynvml's functions."""
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        missing = getattr(error, "value", None) == library.NVML_ERROR_LIBRARY_NOT_FOUND
        return Nvml(library, NO_DRIVER if missing else f"the NVIDIA driver does not answer: {error}")
    return Nvml(library)


@cache
def nvml() -> Nvml:
    """The machine's own, initialised once per process."""
    import pynvml

    return connect(pynvml)
