"""Which device is profiled: the one that `--device` names."""

from collections.abc import Iterator
from contextlib import contextmanager

from efserve.devices.cpu import available_cores
from efserve.devices.gpu import cuda_devices, gpus
from efserve.partition import CPU
from efserve.profiler.gpu import GpuDevice, gpu_device, mps_for
from efserve.profiler.options import ProfileConfig
from efserve.profiler.shares import Device, cpu_device
from efserve.records import Machine


def device_for(config: ProfileConfig, machine: Machine) -> Device:
    """The device that the options name. Raises UsageError where it is not there."""
    if config.device.lower() == CPU:
        return cpu_device(machine.cpu_model)
    if config.device.lower() != "auto":
        return gpu_device(config.device, available_cores())
    there = cuda_devices(gpus())
    return gpu_device(there[0].uuid, available_cores()) if there else cpu_device(machine.cpu_model)


@contextmanager
def able_to_share(device: Device, config: ProfileConfig) -> Iterator[Device]:
    """The device with what holds its shares: an MPS daemon where a part of a GPU is to be measured."""
    if isinstance(device, GpuDevice) and (config.grid or config.shares or config.pairs):
        with mps_for(device) as equipped:
            yield equipped
    else:
        yield device
