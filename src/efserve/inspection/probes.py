"""Asks drivers and heavy libraries in processes of their own, so that one that hangs or crashes is one line.

`python -m efserve.inspection.probes NAME` prints the facts of one library, or of the GPUs, as a line of JSON.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import msgspec

from efserve.devices.gpu import GpuFacts, gpu_facts
from efserve.errors import LoadFailed
from efserve.foreign import foreign
from efserve.programs import Ended, run_all

GPUS = "gpus"
_CUDA_PROVIDER = "CUDAExecutionProvider"
_AFTER_THE_OTHERS = {"tensorrt"}  # it makes a CUDA context, and so does onnxruntime


@dataclass(frozen=True, slots=True)
class Library:
    """A library as it was found by importing it."""

    version: str
    problem: str = ""  # why it cannot be imported
    hangs: bool = False  # the problem is that it did not answer in time
    cuda_version: str = ""  # that it was built for; empty: for the CPU only, or it does not tell
    cuda_works: bool | None = None  # None: it was not tried
    cuda_problem: str = ""
    providers: tuple[str, ...] = ()  # what it was built with: onnxruntime's execution providers, OpenVINO's devices
    architectures: tuple[str, ...] = ()  # of GPUs that it has code for, such as sm_90 and compute_90


def ask(names: tuple[str, ...], deadline_s: float) -> tuple[GpuFacts, dict[str, Library | None]]:
    """The GPUs, and libraries by name; None stands for one that is not installed.

    Each has until the deadline. The GPUs come first, or they would tell of our own processes. Those that make a CUDA
    context take turns: a GPU in the mode EXCLUSIVE_PROCESS takes one at a time.
    """
    installed = {name for name in names if importlib.util.find_spec(name) is not None}
    turns = ({GPUS}, installed - _AFTER_THE_OTHERS, installed & _AFTER_THE_OTHERS)
    ended: dict[str, Ended] = {}
    for turn in turns:
        ended |= run_all({name: _command(name) for name in turn}, deadline_s)
    found = {name: library_from(name, ended[name]) for name in installed}
    return gpus_from(ended[GPUS]), {name: found.get(name) for name in names}


def ask_gpus(deadline_s: float) -> GpuFacts:
    """The GPUs alone."""
    return gpus_from(run_all({GPUS: _command(GPUS)}, deadline_s)[GPUS])


def gpus_from(ended: Ended) -> GpuFacts:
    """The answer of the probe of GPUs; a driver that hangs or crashes is its problem."""
    if ended.problem:
        return GpuFacts(f"asking the NVIDIA driver {_failure(ended)}", None, None, (), ())
    return msgspec.json.decode(_last_line(ended.stdout), type=GpuFacts)


def library_from(name: str, ended: Ended) -> Library:
    """The answer of a library's probe, with what the library printed where CUDA does not work and nothing says why."""
    if ended.problem:
        return Library(installed_version(name), problem=f"importing it {_failure(ended)}", hangs=ended.timed_out)
    library = msgspec.json.decode(_last_line(ended.stdout), type=Library)
    if library.cuda_works is False and not library.cuda_problem:
        return replace(library, cuda_problem=_last_line(ended.stderr))
    return library


def installed_version(name: str) -> str:
    """The version of the distribution that a module comes from; empty where that cannot be told."""
    for distribution in (name, *sorted(metadata.packages_distributions().get(name, ()))):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _command(name: str) -> tuple[str, ...]:
    return sys.executable, "-m", "efserve.inspection.probes", name


def _failure(ended: Ended) -> str:
    said = _last_line(ended.stderr)
    return f"{ended.problem}: {said}" if said else ended.problem


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _torch() -> Library:
    import torch

    works = bool(torch.cuda.is_available())
    return Library(
        installed_version("torch"),
        cuda_version=torch.version.cuda or "",
        cuda_works=works,
        architectures=tuple(torch.cuda.get_arch_list()) if works else (),
    )


def _onnxruntime() -> Library:
    import onnxruntime

    providers = tuple(onnxruntime.get_available_providers())
    works, problem = None, ""
    if _CUDA_PROVIDER in providers:
        works, problem = _attempt(lambda: _session_is_on_cuda(onnxruntime))
    return Library(
        onnxruntime.__version__,  # which of several distributions has won is not in their metadata
        cuda_version=getattr(onnxruntime, "cuda_version", "") or "",
        cuda_works=works,
        cuda_problem=problem,
        providers=providers,
    )


def _session_is_on_cuda(onnxruntime: Any) -> bool:
    """Whether a session gets the provider that it asks for; it falls back to the CPU where libraries are missing."""
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(_identity(), providers=[_CUDA_PROVIDER])
    return _CUDA_PROVIDER in session.get_providers()


def _identity() -> bytes:
    """The smallest model: what goes in comes out."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _tensorrt() -> Library:
    tensorrt: Any = importlib.import_module("tensorrt")
    works, problem = _attempt(lambda: tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR)) is not None)
    return Library(installed_version("tensorrt"), cuda_works=works, cuda_problem=problem)


def _pycuda() -> Library:
    driver: Any = importlib.import_module("pycuda.driver")
    works, problem = _attempt(lambda: _has_device(driver))
    built_for = ".".join(map(str, driver.get_version()[:2]))
    return Library(installed_version("pycuda"), cuda_version=built_for, cuda_works=works, cuda_problem=problem)


def _has_device(driver: Any) -> bool:
    driver.init()
    return bool(driver.Device.count())


def _openvino() -> Library:
    openvino: Any = importlib.import_module("openvino")
    return Library(installed_version("openvino"), providers=tuple(openvino.Core().available_devices))


def _attempt(use_cuda: Callable[[], bool]) -> tuple[bool, str]:
    """Whether CUDA works through a library, and if not, what it says."""
    try:
        with foreign("CUDA does not start", LoadFailed):
            return use_cuda(), ""
    except LoadFailed as exc:
        return False, str(exc)


LIBRARIES: Mapping[str, Callable[[], Library]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "pycuda": _pycuda,
}


def _library(name: str) -> Library:
    try:
        with foreign("it cannot be imported", LoadFailed):
            return LIBRARIES[name]()
    except LoadFailed as exc:
        return Library(installed_version(name), problem=str(exc))


def main(name: str) -> None:
    """Prints the facts of one library, or of the GPUs."""
    facts = gpu_facts() if name == GPUS else _library(name)
    sys.stdout.write(f"\n{msgspec.json.encode(facts).decode()}\n")


if __name__ == "__main__":
    main(sys.argv[1])
