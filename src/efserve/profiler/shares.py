"""What a share is on the device that is profiled: partitions to run workers in, and where the profiler keeps meanwhile.

Owns the CPU's side, where a share is a number of cores; `gpu.py` has that of a GPU. Reads the machine, runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from efserve.devices.cpu import cores_to_use, cpu_slug
from efserve.errors import UsageError
from efserve.partition import Partition
from efserve.profiler.gauges import CpuGauge, Gauge
from efserve.profiler.options import ProfileConfig


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a device, ready to run a worker in."""

    pct: float
    partition: Partition
    name: str  # for people: "1 of 2 cores", "40% of gpu0"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the facts of a profile say of its device."""

    slug: str  # folder of its profiles
    cores: tuple[int, ...]  # of the host, that efserve may use
    threads: str  # engine threads of a share
    means: str  # of a share: cores, mps, green, "whole device"
    gpu: str = ""  # its name; empty on a CPU
    driver: str = ""


class Device(Protocol):
    """A device that can be profiled."""

    @property
    def facts(self) -> DeviceFacts:
        """What it is."""
        ...

    def shares(self, config: ProfileConfig) -> tuple[Share, ...]:
        """Shares to measure, ascending; UsageError for some that the device cannot have."""
        ...

    def splits(self, config: ProfileConfig) -> tuple[tuple[Share, Share], ...]:
        """Complementary shares for pairs of models; UsageError where the device cannot be split so."""
        ...

    def gauge(self, share: Share) -> Gauge:
        """What to look at while a worker runs on the share."""
        ...


@dataclass(frozen=True, slots=True)
class CpuDevice:
    """The host's processor: one engine thread for each core of a share."""

    facts: DeviceFacts

    def shares(self, config: ProfileConfig) -> tuple[Share, ...]:
        """So many of the first cores."""
        cores = self.facts.cores
        return tuple(self._share(cores[:count]) for count in core_counts(config, len(cores)))

    def splits(self, config: ProfileConfig) -> tuple[tuple[Share, Share], ...]:
        """The first cores and the others."""
        cores = self.facts.cores
        total = len(cores)
        if total < 2:
            raise UsageError("--pairs needs 2 cores, one for each model: efserve may use 1 on this machine")
        asked = config.cores or _counts_of(config.shares, total)
        counts = sorted(set(asked or (range(1, total) if config.grid else (total // 2, total - total // 2))))
        if counts[-1] >= total:
            raise UsageError(f"--pairs on {counts[-1]} of {total} cores leaves none for the other model; give fewer")
        return tuple((self._share(cores[:count]), self._share(cores[count:])) for count in counts)

    def gauge(self, share: Share) -> Gauge:
        """What sysfs tells of the share's cores."""
        return CpuGauge(share.partition.cores)

    def _share(self, cores: tuple[int, ...]) -> Share:
        total = len(self.facts.cores)
        partition = Partition(threads=len(cores), cores=cores, share_pct=share_pct(len(cores), total))
        return Share(share_pct(len(cores), total), partition, f"{len(cores)} of {total} cores")


def cpu_device(cpu_model: str) -> CpuDevice:
    """The processor of this machine, within a quota of its time."""
    cores = cores_to_use()
    return CpuDevice(DeviceFacts(cpu_slug(cpu_model, len(cores)), cores, "one per core", "cores"))


def core_counts(config: ProfileConfig, total_cores: int) -> tuple[int, ...]:
    """Numbers of cores to measure, ascending: those asked for, else every one for a grid, else all cores at once.

    Raises UsageError for more cores than there are, and for a share that is no whole number of them.
    """
    asked = config.cores or _counts_of(config.shares, total_cores)
    if asked:
        if max(asked) > total_cores:
            raise UsageError(f"--cores {max(asked)}: efserve may use {total_cores} cores on this machine")
        return tuple(sorted(set(asked)))
    return tuple(range(1, total_cores + 1)) if config.grid else (total_cores,)


def _counts_of(shares: Sequence[float], total_cores: int) -> tuple[int, ...]:
    counts = []
    for pct in shares:
        count = round(pct * total_cores / 100)
        if count < 1 or abs(share_pct(count, total_cores) - pct) > 0.5:
            raise UsageError(
                f"--shares {pct:g}: a share of {total_cores} cores is a multiple of {share_pct(1, total_cores):g}%; "
                "--cores takes their number"
            )
        counts.append(count)
    return tuple(counts)


def share_pct(cores: int, total_cores: int) -> float:
    """The share of the machine that `cores` of its cores are."""
    return round(100 * cores / total_cores, 2)
