"""A stand-in for pynvml: GPUs as dictionaries from a function's name to its answer, or to the error that it raises.

What a dictionary lacks is "not supported", as a real driver answers for a value that a GPU does not have. The shapes
of the answers are those of nvidia-ml-py 13 (its source) and of the NVML API Reference.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class FakeNvmlError(Exception):
    """As pynvml.NVMLError: the code is in `value`."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


NOT_SUPPORTED = FakeNvmlError(3, "Not Supported")
NOT_FOUND = FakeNvmlError(6, "Not Found")
DRIVER_NOT_LOADED = FakeNvmlError(9, "Driver Not Loaded")
LIBRARY_NOT_FOUND = FakeNvmlError(12, "NVML Shared Library Not Found")
LOST = FakeNvmlError(15, "GPU is lost")

Answers = Mapping[str, object]


class FakeNvml:
    """The functions of pynvml that efserve calls. A handle is the GPU's own dictionary; `slices` holds those of MIG."""

    NVMLError = FakeNvmlError
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def __init__(
        self,
        *gpus: Answers | FakeNvmlError,
        init: FakeNvmlError | None = None,
        driver: str = "570.86.15",
        cuda: int = 12080,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._gpus = gpus
        self._init = init
        self._driver = driver
        self._cuda = cuda
        self._names = names or {}

    def nvmlInit(self) -> None:
        if self._init is not None:
            raise self._init

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self._cuda

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        if pid not in self._names:
            raise NOT_FOUND
        return self._names[pid]

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Answers:
        gpu = self._gpus[index]
        if isinstance(gpu, FakeNvmlError):
            raise gpu
        return gpu

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> Answers:
        for gpu in self._gpus:
            if not isinstance(gpu, FakeNvmlError) and gpu["nvmlDeviceGetUUID"] == uuid.decode():
                return gpu
        raise NOT_FOUND

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Answers, index: int) -> object:
        slices = gpu.get("slices", {})
        assert isinstance(slices, dict)
        if index not in slices:
            raise NOT_FOUND
        return slices[index]

    def nvmlDeviceGetClockInfo(self, gpu: Answers, kind: int) -> object:
        return self._of(gpu, f"nvmlDeviceGetClockInfo:{kind}")

    def nvmlDeviceGetMaxClockInfo(self, gpu: Answers, kind: int) -> object:
        return self._of(gpu, f"nvmlDeviceGetMaxClockInfo:{kind}")

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("nvmlDeviceGet"):
            raise AttributeError(function)
        return lambda gpu, *_arguments: self._of(gpu, function)

    def _of(self, gpu: Answers, function: str) -> object:
        answer = gpu.get(function, NOT_SUPPORTED)
        if isinstance(answer, FakeNvmlError):
            raise answer
        return answer


def process(pid: int, memory_bytes: int | None = None) -> object:
    """An entry of a list of running processes."""
    return SimpleNamespace(pid=pid, usedGpuMemory=memory_bytes)


def memory(total_bytes: int, used_bytes: int) -> object:
    """An answer of nvmlDeviceGetMemoryInfo."""
    return SimpleNamespace(total=total_bytes, used=used_bytes, free=total_bytes - used_bytes)


def h200(uuid: str = "GPU-5f1b4c5e-2d9a-7c11-9a55-0a3f7e1c2b44", **answers: object) -> dict[str, object]:
    """A GPU with the figures of NVIDIA's H200 data sheet and of the Hopper white paper: 132 SMs of 128 cores."""
    return {
        "nvmlDeviceGetUUID": uuid,
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetNumGpuCores": 132 * 128,
        "nvmlDeviceGetCudaComputeCapability": (9, 0),
        "nvmlDeviceGetComputeMode": 0,
        "nvmlDeviceGetMemoryInfo": memory(141 * 10**9, 10**9),
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:19:00.0"),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12),
        "nvmlDeviceGetClockInfo:1": 1980,
        "nvmlDeviceGetClockInfo:2": 3201,
        "nvmlDeviceGetMaxClockInfo:1": 1980,
        "nvmlDeviceGetMaxClockInfo:2": 3201,
        "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetPowerUsage": 118_250,
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetComputeRunningProcesses_v3": [],
        "nvmlDeviceGetGraphicsRunningProcesses_v3": [],
        "nvmlDeviceGetMPSComputeRunningProcesses_v3": [],
        **answers,
    }


def mig_slice(uuid: str, name: str, sm_count: int, memory_bytes: int) -> dict[str, object]:
    """A slice of a GPU."""
    return {
        "nvmlDeviceGetUUID": uuid,
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetAttributes_v2": SimpleNamespace(multiprocessorCount=sm_count, memorySizeMB=memory_bytes >> 20),
        "nvmlDeviceGetMemoryInfo": memory(memory_bytes, 0),
    }
