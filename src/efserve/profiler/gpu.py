"""A GPU, or a slice of one, as a device to profile: shares by MPS or green contexts, and what NVML tells meanwhile.

Never run on a GPU by this project: the logic is tested with a stand-in for the driver.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from efserve.config import mps_run_directory
from efserve.devices import gpm
from efserve.devices.gpu import Gpu, GpuFacts, GpuReading, MigSlice, find_gpu, gpu_facts, gpu_reading, gpu_slug
from efserve.devices.nvml import Nvml, nvml
from efserve.errors import MpsFailed, UsageError
from efserve.partition import Partition
from efserve.partitions.compute_mode import choose, list_gpus
from efserve.partitions.mps import MpsDaemons
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.mps_lease import Lease
from efserve.partitions.nvidia_programs import NvidiaPrograms
from efserve.placing import equip
from efserve.profiler.gauges import Gauge, Look
from efserve.profiler.options import ProfileConfig
from efserve.profiler.shares import DeviceFacts, Share

log = logging.getLogger(__name__)

GRID_PCT = tuple(float(pct) for pct in range(10, 101, 10))
PAIR_PCT = (20.0, 40.0, 50.0, 60.0, 80.0)  # the sizes that gpu-lets cuts a GPU into
MAX_THREADS = 4  # on the host, beside the GPU
_MPS_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU. Workers keep off the host's first core, which is the profiler's, where there is another."""

    facts: DeviceFacts
    uuid: str
    name: str  # for people: gpu0
    sm_count: int  # 0: not known
    pipe_directory: str = ""  # of an MPS daemon; empty: shares are green contexts
    library: Nvml | None = None  # None: the machine's own

    def shares(self, config: ProfileConfig) -> tuple[Share, ...]:
        """The shares asked for, else 10, 20, ..., 100 % for a grid, else the whole."""
        pcts = sorted(set(self._asked(config) or (GRID_PCT if config.grid else (100.0,))))
        return tuple(self._share(pct, self.facts.cores[1:] or self.facts.cores) for pct in pcts)

    def splits(self, config: ProfileConfig) -> tuple[tuple[Share, Share], ...]:
        """Shares that make up the whole; each side has half of the host's cores."""
        pcts = sorted(set(self._asked(config) or (PAIR_PCT if config.grid else (50.0,))))
        if pcts[-1] >= 100:
            raise UsageError("--pairs at a share of 100% leaves none for the other model; give fewer")
        cores = self.facts.cores[1:]
        half = len(cores) // 2
        ours, theirs = (cores[:half], cores[half:]) if half else (self.facts.cores, self.facts.cores)
        return tuple((self._share(pct, ours), self._share(100 - pct, theirs)) for pct in pcts)

    def gauge(self, share: Share) -> Gauge:
        """NVML's figures of the whole GPU, and the worker's memory."""
        return GpuGauge(self.uuid, self.library or nvml())

    def with_mps(self, pipe_directory: str) -> "GpuDevice":
        """The same with shares by a daemon; without a directory, by green contexts."""
        means = "mps" if pipe_directory else "green"
        return replace(self, pipe_directory=pipe_directory, facts=replace(self.facts, means=means))

    def _asked(self, config: ProfileConfig) -> Sequence[float]:
        if config.cores:
            raise UsageError(f"--cores: a share of {self.name} is in percent; give --shares 25,50 or --device cpu")
        return config.shares

    def _share(self, pct: float, cores: tuple[int, ...]) -> Share:
        threads = min(MAX_THREADS, len(cores))
        partition = Partition(self.uuid, threads, cores, share_pct=pct, units=self.sm_count)
        return Share(pct, equip(partition, self.pipe_directory), f"{pct:g}% of {self.name}")


def gpu_device(wanted: str, cores: tuple[int, ...], library: Nvml | None = None) -> GpuDevice:
    """The GPU of that name, such as `gpu0`, index or uuid. Raises UsageError where there is none."""
    facts = gpu_facts(library)
    if not facts.gpus:
        raise UsageError(f"--device {wanted}: {facts.problem or 'the driver has no GPU'}; --device cpu runs here")
    found = find_gpu(wanted, facts.gpus)
    device_facts = DeviceFacts(
        slug=gpu_slug(found.name),
        cores=cores,
        threads=f"up to {MAX_THREADS} on the host",
        means="whole device",
        gpu=found.name,
        driver=facts.driver_version or "",
    )
    return GpuDevice(device_facts, found.uuid, _label(found, facts), found.sm_count or 0, library=library)


def _label(found: Gpu | MigSlice, facts: GpuFacts) -> str:
    if isinstance(found, Gpu):
        return f"gpu{found.index}"
    owner = next(gpu for gpu in facts.gpus if found in gpu.mig_slices)
    return f"gpu{owner.index}:{found.index}"


@contextmanager
def mps_for(device: GpuDevice) -> Iterator[GpuDevice]:
    """The device with a daemon of its own or one that runs, ended afterwards if it was started here.

    Where MPS cannot be had, shares are green contexts; a log line tells why.
    """
    daemons = MpsDaemons(RunDirectory(mps_run_directory()), NvidiaPrograms(deadline_s=_MPS_DEADLINE_S))
    unit, lease = "", None
    try:
        unit, lease = asyncio.run(_use(daemons, device.uuid))
    except (MpsFailed, UsageError) as exc:
        log.warning("no MPS for %s, so shares are green contexts: %s", device.name, exc)
    if not unit:
        yield device.with_mps("")
        return
    try:
        yield device.with_mps(str(daemons.directory.pipes(unit)))
    finally:
        if not asyncio.run(daemons.leave(unit, lease)):
            log.error("MPS of %s could not be undone; try: efserve mps stop", unit)


async def _use(daemons: MpsDaemons, uuid: str) -> tuple[str, Lease | None]:
    daemons.programs.found()
    (gpu,) = choose(await list_gpus(daemons.programs), (uuid,))
    return await daemons.use(gpu)


class GpuGauge:
    """What NVML tells of a GPU; utilisations are of all that runs on it, since the look before where they can be."""

    def __init__(self, uuid: str, library: Nvml) -> None:
        self._uuid = uuid
        self._library = library
        self._sample: Any | None = None

    def __repr__(self) -> str:
        return f"GpuGauge({self._uuid})"

    def look(self, pid: int) -> Look:
        """The GPU now, and the worker's memory on it where the driver knows its process id."""
        reading = gpu_reading(self._uuid, self._library)
        before, self._sample = self._sample, gpm.take_sample(self._library, self._uuid)
        activity = gpm.activity(self._library, before, self._sample)
        if before is not None:
            gpm.free(self._library, before)
        dram_pct = reading.memory_utilization_pct if activity.dram_pct is None else activity.dram_pct
        return Look(
            clock_mhz=reading.sm_clock_mhz,
            throttle=None if reading.sm_clock_mhz is None else frozenset(_throttles(reading)),
            gpu_util_pct=reading.utilization_pct,
            sm_util_pct=activity.sm_pct,
            dram_util_pct=dram_pct,
            memory_bytes=self._memory_bytes(pid),
        )

    def _memory_bytes(self, pid: int) -> int | None:
        processes = [process for gpu in gpu_facts(self._library).gpus for process in gpu.processes]
        return next((process.memory_bytes for process in processes if process.pid == pid), None)


def _throttles(reading: GpuReading) -> list[str]:
    """The reasons for lower clocks that nobody chose."""
    return [reason for reason in reading.clock_reasons if GpuReading(clock_reasons=(reason,)).throttled]
