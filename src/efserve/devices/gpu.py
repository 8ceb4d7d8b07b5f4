"""The machine's NVIDIA GPUs as NVML tells them: what they are, what runs on them, how they do at this moment.

Creates no CUDA context, changes nothing. None stands for a value that this driver or this GPU does not tell.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efserve.devices.nvml import Nvml, nvml
from efserve.errors import UsageError

_COMPUTE_MODES = {0: "DEFAULT", 1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
# FP32 lanes of an SM by compute capability (CUDA Programming Guide, "Compute Capabilities"): NVML tells their sum only.
_CORES_PER_SM = {
    **dict.fromkeys(((5, 0), (5, 2), (5, 3), (6, 1), (6, 2)), 128),
    **dict.fromkeys(((6, 0), (7, 0), (7, 2), (7, 5), (8, 0)), 64),
    **dict.fromkeys(((8, 6), (8, 7), (8, 9), (9, 0)), 128),
    **dict.fromkeys(((10, 0), (10, 3), (11, 0), (12, 0), (12, 1)), 128),
}
# What holds the clocks at this moment: bits of nvmlDeviceGetCurrentClocksEventReasons
_CLOCK_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown by software",
    0x040: "thermal slowdown by hardware",
    0x080: "power brake",
    0x100: "display clocks",
}
_BY_CHOICE = {"idle", "application clocks", "display clocks"}  # not the GPU's own defence: no figure is spoilt by them
_PROCESS_KINDS = {
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
}
_MPS_SERVER = "nvidia-cuda-mps-server"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """A GPU at one moment."""

    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    clock_reasons: tuple[str, ...] = ()  # why the clocks are not higher
    utilization_pct: int | None = None  # time in which any kernel ran, over the driver's last period
    memory_utilization_pct: int | None = None  # time in which device memory was read or written
    memory_used_bytes: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None

    @property
    def throttled(self) -> bool:
        """Whether the GPU slows itself down, for heat or power; a measurement of that moment is not typical."""
        return not _BY_CHOICE.issuperset(self.clock_reasons)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU."""

    pid: int
    kinds: tuple[str, ...]  # of "compute", "graphics" and "mps": a client of an MPS server
    memory_bytes: int | None
    name: str  # of its program; empty where it is out of sight, as from within a container


@dataclass(frozen=True, slots=True)
class MigSlice:
    """A slice of a GPU that the administrator has cut: for CUDA a device of its own."""

    uuid: str
    name: str
    index: int  # within its GPU
    sm_count: int | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. With MIG enabled, CUDA programs run on its slices only."""

    index: int  # NVML's, as nvidia-smi shows it; CUDA may count in another order
    uuid: str
    name: str
    sm_count: int | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    compute_capability: tuple[int, int] | None
    compute_mode: str | None  # DEFAULT, EXCLUSIVE_PROCESS, PROHIBITED
    mig_enabled: bool | None  # None: this GPU knows no MIG
    mig_slices: tuple[MigSlice, ...]
    pci_bus_id: str | None
    reading: GpuReading
    processes: tuple[GpuProcess, ...]

    @property
    def mps_clients(self) -> tuple[GpuProcess, ...]:
        """Clients of an MPS server now; empty does not mean that there is no daemon."""
        return tuple(process for process in self.processes if "mps" in process.kinds)

    @property
    def mps_servers(self) -> tuple[GpuProcess, ...]:
        """MPS servers on this GPU."""
        return tuple(process for process in self.processes if process.name == _MPS_SERVER)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """All that NVML tells of this machine."""

    problem: str  # why no GPU can be asked, in a few words; empty: the driver answers
    driver_version: str | None
    cuda_version: str | None  # the newest that the driver supports, such as "12.4"
    gpus: tuple[Gpu, ...]
    unreachable: tuple[int, ...]  # indices of GPUs that the driver counts and cannot reach


def gpu_facts(library: Nvml | None = None) -> GpuFacts:
    """Everything about all GPUs; without a driver `problem` says so, at once and without a warning."""
    library = library or nvml()
    handles = library.handles()
    version = library.ask("nvmlSystemGetCudaDriverVersion_v2")
    return GpuFacts(
        problem=library.problem,
        driver_version=library.ask("nvmlSystemGetDriverVersion"),
        cuda_version=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        gpus=tuple(_gpu(library, index, handle) for index, handle in handles.items()),
        unreachable=tuple(index for index in range(library.count()) if index not in handles),
    )


def gpus() -> tuple[Gpu, ...]:
    """The machine's GPUs in NVML's order; none without a driver."""
    return gpu_facts().gpus


def gpu_slug(name: str) -> str:
    """Folder name for what belongs to a GPU: `nvidia-h200`."""
    return "-".join(re.findall("[a-z0-9]+", name.lower())) or "gpu"


def cuda_devices(all_gpus: Sequence[Gpu]) -> tuple[Gpu | MigSlice, ...]:
    """What CUDA programs may run on: each GPU, or its slices where MIG is enabled."""
    return tuple(device for gpu in all_gpus for device in (gpu.mig_slices if gpu.mig_enabled else (gpu,)))


def is_named(wanted: str, index: str, uuid: str) -> bool:
    """Whether a person means this device, of index `0` or a slice `0:1`: by `0`, `gpu0` or the uuid, in any case."""
    return wanted.strip().lower() in (index, f"gpu{index}", uuid.lower())


def find_gpu(wanted: str, all_gpus: Sequence[Gpu]) -> Gpu | MigSlice:
    """The one GPU or slice of that index (`0` or `gpu0`, a slice is `0:1`), uuid or beginning of one, or of a name.

    Raises UsageError where there is none or more than one.
    """
    known: list[tuple[str, Gpu | MigSlice]] = []
    for gpu in all_gpus:
        known += [(str(gpu.index), gpu), *((f"{gpu.index}:{part.index}", part) for part in gpu.mig_slices)]
    text = wanted.strip().lower()
    found = [device for index, device in known if is_named(text, index, device.uuid)]
    if text and not found:
        found = [device for _, device in known if device.uuid.lower().startswith(text)]
    if text and not found:
        names = (text, f"nvidia {text}")
        found = [device for _, device in known if device.name.lower().startswith(names)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{index} ({device.name}, {device.uuid})" for index, device in known) or "none"
    raise UsageError(
        f"GPU '{wanted}' fits {len(found) or 'none'} of this machine's GPUs ({there}); name one by its index, "
        "its uuid, or the beginning of its uuid or name"
    )


def gpu_reading(uuid: str, library: Nvml | None = None) -> GpuReading:
    """Clocks, utilisation, memory and heat of one GPU or slice now; a reading of Nones where it cannot be reached."""
    library = library or nvml()
    handle = library.ask("nvmlDeviceGetHandleByUUID", uuid.encode())
    return GpuReading() if handle is None else _reading(library, handle)


def _gpu(library: Nvml, index: int, handle: Any) -> Gpu:
    capability = library.ask("nvmlDeviceGetCudaComputeCapability", handle)
    memory = library.ask("nvmlDeviceGetMemoryInfo", handle)
    mode = library.ask("nvmlDeviceGetComputeMode", handle)
    mig = library.ask("nvmlDeviceGetMigMode", handle)
    pci = library.ask("nvmlDeviceGetPciInfo", handle)
    slices = tuple(_slices(library, handle)) if mig and mig[0] else ()
    return Gpu(
        index=index,
        uuid=str(library.ask("nvmlDeviceGetUUID", handle) or f"unknown-{index}"),
        name=str(library.ask("nvmlDeviceGetName", handle) or "unknown GPU"),
        sm_count=_sm_count(library.ask("nvmlDeviceGetNumGpuCores", handle), capability),
        memory_total_bytes=memory.total if memory else None,
        memory_used_bytes=memory.used if memory else None,
        compute_capability=capability,
        compute_mode=None if mode is None else _COMPUTE_MODES.get(mode, str(mode)),
        mig_enabled=None if mig is None else bool(mig[0]),
        mig_slices=slices,
        pci_bus_id=_text(pci.busId) if pci else None,
        reading=_reading(library, handle),
        processes=tuple(_processes(library, handle)),
    )


def _sm_count(cores: int | None, capability: tuple[int, int] | None) -> int | None:
    per_sm = _CORES_PER_SM.get(capability) if capability else None
    return cores // per_sm if cores and per_sm else None


def _slices(library: Nvml, handle: Any) -> Iterator[MigSlice]:
    for index in range(library.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = library.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        uuid = None if part is None else library.ask("nvmlDeviceGetUUID", part)
        if uuid is None:  # no slice is cut here
            continue
        attributes = library.ask("nvmlDeviceGetAttributes_v2", part)
        memory = library.ask("nvmlDeviceGetMemoryInfo", part)
        yield MigSlice(
            uuid=str(uuid),
            name=str(library.ask("nvmlDeviceGetName", part) or "MIG slice"),
            index=index,
            sm_count=attributes.multiprocessorCount if attributes else None,
            memory_total_bytes=memory.total if memory else None,
            memory_used_bytes=memory.used if memory else None,
        )


def _reading(library: Nvml, handle: Any) -> GpuReading:
    pynvml = library.library
    memory = library.ask("nvmlDeviceGetMemoryInfo", handle)
    rates = library.ask("nvmlDeviceGetUtilizationRates", handle)
    reasons = library.ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # drivers before 535 know the older name only
        reasons = library.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    power_mw = library.ask("nvmlDeviceGetPowerUsage", handle)
    power_limit_mw = library.ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    return GpuReading(
        sm_clock_mhz=library.ask("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
        sm_clock_max_mhz=library.ask("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=library.ask("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        memory_clock_max_mhz=library.ask("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        clock_reasons=tuple(word for bit, word in _CLOCK_REASONS.items() if (reasons or 0) & bit),
        utilization_pct=rates.gpu if rates else None,
        memory_utilization_pct=rates.memory if rates else None,
        memory_used_bytes=memory.used if memory else None,
        temperature_c=library.ask("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if power_limit_mw is None else power_limit_mw / 1000,
    )


def _processes(library: Nvml, handle: Any) -> Iterator[GpuProcess]:
    """By pid; a client of MPS is in two lists of the driver."""
    kinds: dict[int, list[str]] = {}
    memory: dict[int, int | None] = {}
    for kind, function in _PROCESS_KINDS.items():
        listed = library.ask(f"{function}_v3", handle)
        if listed is None:  # drivers before 510
            listed = library.ask(f"{function}_v2", handle)
        for process in listed or ():
            kinds.setdefault(process.pid, []).append(kind)
            memory[process.pid] = process.usedGpuMemory or memory.get(process.pid)
    for pid in sorted(kinds):
        path = library.ask("nvmlSystemGetProcessName", pid)
        yield GpuProcess(pid, tuple(kinds[pid]), memory[pid], Path(_text(path)).name if path else "")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
