"""A machine with one GPU, as `pynvml` tells of it: what is needed to be taken for a machine with a GPU, and no more."""

NVML_ERROR_LIBRARY_NOT_FOUND = 12


class NVMLError(Exception):
    """An error of the library."""


def nvmlInit() -> None:
    """Always works."""


def nvmlDeviceGetCount() -> int:
    """One."""
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    """The one there is."""
    if index:
        raise NVMLError
    return "gpu 0"


def nvmlDeviceGetUUID(handle: str) -> str:
    """Of the one there is."""
    return "GPU-5a4d-1n"


def __getattr__(name: str) -> int:
    """Any constant; no other function is known."""
    if name.startswith("NVML_"):
        return 0
    raise AttributeError(name)
