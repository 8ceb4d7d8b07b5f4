"""Whether a GPU is still there for this process: after some faults every further call fails, whatever it is.

Such a process is of no use any more; the worker ends, and the next one begins with a context of its own.
"""

from collections.abc import Callable

from efserve.errors import DeviceLost


def check_device(error: Exception, synchronize: Callable[[], object]) -> None:
    """After a failed run: raise DeviceLost where the device cannot even be waited for."""
    try:
        synchronize()
    except Exception as lost:  # noqa: BLE001  # whatever the library raises: it is the answer
        said = " ".join(str(error).split()) or type(error).__name__
        raise DeviceLost(f"the GPU is lost to this worker: {said}; then: {' '.join(str(lost).split())}") from error
