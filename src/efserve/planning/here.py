"""This machine's devices as plans name them: kinds that profiles may lie for, how many there are, their memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from efserve.devices.cpu import HostCpu, cpu_slug, host_cpu
from efserve.devices.gpu import Gpu, cuda_devices, gpu_slug, gpus


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices of one kind."""

    name: str  # as the folder of its profiles
    count: int
    memory_mb: float  # of each; 0: not known


def kinds_here() -> list[Kind]:
    """What this machine has; see `kinds_of`."""
    return kinds_of(gpus(), host_cpu())


def kinds_of(cards: Sequence[Gpu], host: HostCpu) -> list[Kind]:
    """GPUs (or their MIG slices) by name, then the processor."""
    found = sorted(cuda_devices(cards), key=lambda device: device.name)
    kinds = []
    for name, same in groupby(found, key=lambda device: gpu_slug(device.name)):
        sizes_bytes = [device.memory_total_bytes or 0 for device in same]
        kinds.append(Kind(name, len(sizes_bytes), min(sizes_bytes) / 1e6))
    memory_bytes = min(host.memory_total_bytes, host.cgroup.memory_limit_bytes or host.memory_total_bytes)
    return [*kinds, Kind(cpu_slug(host.model, host.usable_cores), 1, memory_bytes / 1e6)]
