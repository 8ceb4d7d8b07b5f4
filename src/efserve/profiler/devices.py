"""Which device is profiled: the one that `--device` names."""

from efserve.errors import UsageError
from efserve.profiler.options import ProfileConfig
from efserve.profiler.shares import Device, cpu_device
from efserve.records import Machine


def device_for(config: ProfileConfig, machine: Machine) -> Device:
    """The device that the options name. Raises UsageError where it is not there."""
    if config.device in ("auto", "cpu"):
        return cpu_device(machine.cpu_model)
    raise UsageError(f"--device {config.device}: there is no such device; choose cpu")
