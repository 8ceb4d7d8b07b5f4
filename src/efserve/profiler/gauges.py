"""Looks at a device while it is measured: clock, what holds it down, how busy it is, the worker's memory on it.

Owns the CPU's gauge; that of a GPU is in `gpu.py`. What a device does not tell is None, never an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from efserve.profiles import NOT_THROTTLED


@dataclass(frozen=True, slots=True)
class Look:
    """A device at one moment; None is what cannot be had."""

    clock_mhz: float | None = None
    throttle: frozenset[str] | None = None  # reasons that hold the clock down, or have since the look before
    gpu_util_pct: float | None = None  # time in which any kernel ran
    sm_util_pct: float | None = None  # of the SMs' time
    dram_util_pct: float | None = None  # of the memory's bandwidth
    memory_bytes: int | None = None  # that the worker has on the device


class Gauge(Protocol):
    """Something to look at; one for each worker."""

    def look(self, pid: int) -> Look:
        """The device now, and the memory of worker `pid` on it."""
        ...


class CpuGauge:
    """The cores of a share, as sysfs tells of them; a virtual machine often tells nothing."""

    def __init__(self, cores: Sequence[int], root: Path = Path("/")) -> None:
        self._folders = [root / f"sys/devices/system/cpu/cpu{core}" for core in cores]
        self._throttled = self._throttle_count()

    def __repr__(self) -> str:
        return f"CpuGauge({[folder.name for folder in self._folders]})"

    def look(self, pid: int) -> Look:
        """Mean clock of the cores; thermal throttling since the last look."""
        clocks_khz = [_number(folder / "cpufreq/scaling_cur_freq") for folder in self._folders]
        known = [clock for clock in clocks_khz if clock is not None]
        before, self._throttled = self._throttled, self._throttle_count()
        throttle = None
        if before is not None and self._throttled is not None:
            throttle = frozenset({"thermal"} if self._throttled > before else ())
        return Look(clock_mhz=sum(known) / len(known) / 1000 if known else None, throttle=throttle)

    def _throttle_count(self) -> int | None:
        counts = [_number(folder / "thermal_throttle/core_throttle_count") for folder in self._folders]
        return sum(count for count in counts if count is not None) if any(c is not None for c in counts) else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def throttle_text(looks: Sequence[Look]) -> str:
    """The column `throttle`: reasons joined by +, "none", or empty where no look could tell."""
    told = [look.throttle for look in looks if look.throttle is not None]
    reasons = sorted(frozenset[str]().union(*told))
    return "+".join(reasons) if reasons else NOT_THROTTLED if told else ""
