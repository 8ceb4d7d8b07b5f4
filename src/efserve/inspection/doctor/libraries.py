"""Judges the libraries: what they are built for, against the driver and the GPUs that are there."""

import re
from collections.abc import Callable, Mapping, Sequence

from efserve.devices.gpu import Gpu, GpuFacts
from efserve.inspection.doctor.gpu import version_of
from efserve.inspection.doctor.verdict import Verdict, not_applicable, ok, problem, warning
from efserve.inspection.probes import Library

_CUDA_PROVIDER = "CUDAExecutionProvider"


def onnxruntime(library: Library | None, distributions: Mapping[str, str], gpu: GpuFacts) -> Verdict:
    """The engine of ONNX models: its execution providers, and whether two distributions overwrite each other."""
    if library is None or library.problem:
        return _unusable("onnxruntime", library, "pip install --force-reinstall onnxruntime", required=True)
    providers = ", ".join(each.removesuffix("ExecutionProvider") for each in library.providers)
    found = f"{library.version} for {providers}"
    if len(distributions) > 1:
        told = " and ".join(f"{name} {version}" for name, version in distributions.items())
        keep = "onnxruntime-gpu" if gpu.gpus else "onnxruntime"
        mend = f"pip uninstall -y {' '.join(distributions)} && pip install {keep}"
        both = f"{told} are both installed and overwrite each other's files: it is {found}"
        return problem(both, mend) if gpu.gpus and not library.cuda_works else warning(both, mend)
    if not gpu.gpus:
        return ok(found)
    if _CUDA_PROVIDER not in library.providers:
        return problem(
            f"{found}: ONNX models cannot use the GPU", "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        )
    if not library.cuda_works:
        return problem(
            f"{found}: {library.cuda_problem or 'CUDA does not work'}",
            "pip install 'onnxruntime-gpu[cuda,cudnn]', which brings the CUDA and cuDNN that it was built for",
        )
    return _against_driver(found, library, gpu)


def torch(library: Library | None, gpu: GpuFacts) -> Verdict:
    """The engine of TorchScript models; it brings a CUDA of its own."""
    if library is None or library.problem:
        return _unusable("torch", library, "pip install --force-reinstall torch")
    built = f"for CUDA {library.cuda_version}" if library.cuda_version else "for the CPU"
    found = f"{library.version}, {built}"
    if not gpu.gpus:
        return ok(found)
    return _torch_on_gpu(found, library, gpu)


def _torch_on_gpu(found: str, library: Library, gpu: GpuFacts) -> Verdict:
    if not library.cuda_version:
        return problem(
            f"{found}: TorchScript models cannot use the GPU",
            "install a build for CUDA: pip install --force-reinstall torch torchvision",
        )
    if _too_new(library, gpu):
        return _against_driver(found, library, gpu)
    if not library.cuda_works:
        return problem(
            f"{found}: {library.cuda_problem or 'torch.cuda.is_available() is false'}",
            "mend the driver's lines first; then run python -c 'import torch; torch.cuda.init()' to see the reason",
        )
    foreign = [each for each in gpu.gpus if not runs_on(library.architectures, each)]
    if foreign:
        return problem(
            f"{found} has no code for {foreign[0].name} ({', '.join(library.architectures)})",
            "install a build for this GPU: see https://pytorch.org/get-started/locally",
        )
    return _against_driver(found, library, gpu)


def tensorrt(library: Library | None, gpu: GpuFacts) -> Verdict:
    """The engine of `model.plan`."""
    if not gpu.gpus:
        return not_applicable("no GPU" if library is None else f"{library.version}, and no GPU")
    if library is None or library.problem:
        return _unusable("tensorrt", library, "pip install --force-reinstall tensorrt")
    if not library.cuda_works:
        return problem(
            f"{library.version}: {library.cuda_problem or 'it makes no builder'}",
            f"install the TensorRT for the driver's CUDA {gpu.cuda_version}, such as tensorrt-cu{_major(gpu)}",
        )
    return ok(library.version)


def pycuda(library: Library | None, gpu: GpuFacts) -> Verdict:
    """Memory and streams of the TensorRT engine."""
    if not gpu.gpus:
        return not_applicable("no GPU" if library is None else f"{library.version}, and no GPU")
    if library is None or library.problem:
        return _unusable("pycuda", library, "install the CUDA toolkit and run pip install --force-reinstall pycuda")
    found = f"{library.version}, for CUDA {library.cuda_version}"
    if not library.cuda_works:
        return problem(f"{found}: {library.cuda_problem or 'it finds no GPU'}", "mend the driver's lines first")
    return _against_driver(found, library, gpu)


def openvino(library: Library | None) -> Verdict:
    """An engine of ONNX models on CPUs."""
    if library is None or library.problem:
        return _unusable("openvino", library, "pip install --force-reinstall openvino")
    return ok(f"{library.version} for {', '.join(library.providers)}")


def runs_on(architectures: Sequence[str], gpu: Gpu) -> bool:
    """Whether code was built for the GPU: for its family, not newer than it, or as PTX that its driver translates.

    From "Binary Compatibility" and "PTX Compatibility" of the CUDA Programming Guide. True where nothing is told.
    """
    if not architectures or gpu.compute_capability is None:
        return True
    return any(_fits(architecture, gpu.compute_capability) for architecture in architectures)


def _fits(architecture: str, capability: tuple[int, int]) -> bool:
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if found is None:
        return False
    built = (int(found[2]), int(found[3]))
    if found[4] == "a":
        return built == capability
    return built <= capability and (found[1] == "compute" or built[0] == capability[0])


def _against_driver(found: str, library: Library, gpu: GpuFacts) -> Verdict:
    """CUDA's rule: a newer driver runs older code; an older one of the same major version runs most of it."""
    built, driver = version_of(library.cuda_version), version_of(gpu.cuda_version)
    if _too_new(library, gpu):
        return problem(
            f"{found}, and the driver knows CUDA up to {gpu.cuda_version}",
            f"update NVIDIA's driver to one for CUDA {built[0]}, or install a build for CUDA {driver[0]}",
        )
    if built > driver > (0, 0):
        return warning(
            f"{found}, and the driver knows CUDA up to {gpu.cuda_version}",
            "update NVIDIA's driver: code that is compiled while it runs may fail",
        )
    return ok(found)


def _too_new(library: Library, gpu: GpuFacts) -> bool:
    return version_of(library.cuda_version)[0] > version_of(gpu.cuda_version)[0] > 0


def _major(gpu: GpuFacts) -> int:
    return version_of(gpu.cuda_version)[0]


def _unusable(name: str, library: Library | None, mend: str, *, required: bool = False) -> Verdict:
    if library is None:
        absent: Callable[[str, str], Verdict] = problem if required else not_applicable
        return absent("not installed", _INSTALL[name])
    if library.hangs:
        mend = f"allow it more with --deadline-s, or see for yourself where it hangs: python -v -c 'import {name}'"
    return problem(f"{library.version or 'unknown version'}: {library.problem}", mend)


_INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "torch": "pip install 'efserve[torch]' to convert models and to serve TorchScript",
    "openvino": "pip install 'efserve[openvino]' to serve ONNX models by it",
    "tensorrt": "pip install tensorrt to serve plans",
    "pycuda": "pip install pycuda, which TensorRT plans need",
}
