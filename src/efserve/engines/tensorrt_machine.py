"""Whether this machine can run TensorRT, asked without importing it: before anything is started."""

from collections.abc import Sequence
from importlib.util import find_spec

from efserve.devices.nvml import nvml
from efserve.errors import LoadFailed

_LIBRARIES = ("tensorrt", "pycuda")


def check_machine() -> None:
    """Raise LoadFailed, in one sentence, where a library or a GPU is missing."""
    library = nvml()
    problem = library.problem or ("" if library.count() else "no GPU")
    text = refusal([name for name in _LIBRARIES if find_spec(name) is None], problem)
    if text:
        raise LoadFailed(text)


def refusal(missing: Sequence[str], problem: str) -> str:
    """Why TensorRT cannot run, of libraries that are missing and what is wrong with the GPU; empty where it can."""
    reasons = []
    if problem:
        reasons.append(f"this machine has {problem}" if problem.startswith("no ") else problem)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        reasons.append(f"{' and '.join(missing)} {verb} not installed (pip install 'efserve[tensorrt]')")
    return f"TensorRT cannot run here: {', and '.join(reasons)}" if reasons else ""
