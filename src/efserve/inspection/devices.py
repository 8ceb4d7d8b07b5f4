"""What this machine has: its processor and, asked in a process of its own, its GPUs."""

from dataclasses import dataclass

from efserve.devices.cpu import HostCpu, host_cpu
from efserve.devices.gpu import GpuFacts
from efserve.inspection.probes import ask_gpus


@dataclass(frozen=True, slots=True)
class DevicesJob:
    """How long NVIDIA's driver may take to answer."""

    deadline_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Devices:
    """Everything that models can run on."""

    cpu: HostCpu
    gpu: GpuFacts


def devices(job: DevicesJob) -> Devices:
    """This machine's devices."""
    return Devices(host_cpu(), ask_gpus(job.deadline_s))
