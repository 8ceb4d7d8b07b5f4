"""The host's processor: cores, nodes, caches and memory, and how much of them this process may use.

`available_cores` is one system call; `host_cpu` reads some hundred small files of /proc and /sys.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from efserve.devices.cgroup import CgroupLimits, cgroup_limits, core_list, read_text


@dataclass(frozen=True, slots=True)
class NumaNode:
    """Cores that reach the same memory at the same cost."""

    node: int
    cores: tuple[int, ...]  # those that this process may run on, ascending; never empty
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Cache:
    """All caches of one level and kind that belong to available cores."""

    level: int
    kind: str  # "data", "instruction" or "unified"
    size_bytes: int  # of each
    count: int


@dataclass(frozen=True, slots=True)
class HostCpu:
    """The host's processor, as this process may use it."""

    model: str
    cores: tuple[int, ...]  # that this process may run on, ascending
    usable_cores: int  # that may be busy at once, on average: fewer than `cores` under a quota
    cores_of_machine: int
    siblings: tuple[tuple[int, ...], ...]  # available cores, grouped by the physical core that they share
    numa_nodes: tuple[NumaNode, ...]  # with available cores, which they share out among them
    caches: tuple[Cache, ...]
    memory_total_bytes: int
    memory_available_bytes: int  # free or reclaimable on the machine now, within the limit of the control groups
    cgroup: CgroupLimits


def available_cores() -> tuple[int, ...]:
    """Cores that this process may run on, in ascending order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def usable_cores(cores: int, quota_cores: float | None) -> int:
    """How many of `cores` may be busy at once without being throttled by a quota of processor time; at least one.

    A quota of 2.5 gives 2: the third would stand still for half of the time, and with it whoever waits for it.
    """
    return cores if quota_cores is None else min(cores, max(1, int(quota_cores)))


def cores_to_use(root: Path = Path("/")) -> tuple[int, ...]:
    """The first of the available cores, as many as may be busy at once; `root` is where control groups are looked for.

    What is measured on more of them is halted in between.
    """
    cores = available_cores()
    return cores[: usable_cores(len(cores), cgroup_limits(root).cpu_quota_cores)]


def usable_cores_here() -> int:
    """`usable_cores` of this process, by its affinity and its control groups."""
    return len(cores_to_use())


def host_cpu(root: Path = Path("/"), cores: tuple[int, ...] | None = None) -> HostCpu:
    """The host's processor; `root` is where /proc and /sys are looked for, `cores` defaults to the available ones."""
    cores = available_cores() if cores is None else cores
    limits = cgroup_limits(root)
    memory = _meminfo(read_text(root / "proc/meminfo"))
    available_bytes = memory.get("MemAvailable", memory.get("MemFree", 0))
    return HostCpu(
        model=cpu_model(root),
        cores=cores,
        usable_cores=usable_cores(len(cores), limits.cpu_quota_cores),
        cores_of_machine=len(core_list(read_text(root / "sys/devices/system/cpu/online"))) or len(cores),
        siblings=_siblings(root, cores),
        numa_nodes=numa_nodes(root, cores),
        caches=_caches(root, cores),
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=min(available_bytes, limits.memory_limit_bytes or available_bytes),
        cgroup=limits,
    )


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """Time that the cores of the machine have spent since it started, summed, in the kernel's ticks."""

    busy: int
    total: int


def cpu_ticks(root: Path = Path("/")) -> CpuTicks:
    """What the whole machine has done so far; nothing where the kernel does not tell."""
    found = re.match(r"cpu +(.+)", read_text(root / "proc/stat"))
    ticks = [int(word) for word in found[1].split()[:8]] if found else []  # guests, which follow, count as users
    return CpuTicks(sum(ticks) - sum(ticks[3:5]), sum(ticks))  # [3] is idle, [4] waits for a disk


def memory_in_use(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of the whole machine's memory that are used and cannot be had back, and all there are."""
    memory = _meminfo(read_text(root / "proc/meminfo"))
    total_bytes = memory.get("MemTotal", 0)
    return total_bytes - memory.get("MemAvailable", memory.get("MemFree", 0)), total_bytes


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name, or the architecture where the kernel tells none, as on many Arm machines."""
    found = re.search(r"^model name\s*:\s*(.+)$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def numa_nodes(root: Path = Path("/"), cores: tuple[int, ...] | None = None) -> tuple[NumaNode, ...]:
    """Nodes with available cores, by number; a single one with all of them where the kernel knows no nodes."""
    cores = available_cores() if cores is None else cores
    nodes = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        inside = tuple(core for core in core_list(read_text(folder / "cpulist")) if core in cores)
        number = int(folder.name.removeprefix("node"))
        memory = _meminfo(read_text(folder / "meminfo").replace(f"Node {number} ", ""))
        if inside:
            nodes.append(NumaNode(number, inside, memory.get("MemTotal")))
    return tuple(sorted(nodes, key=lambda node: node.node)) or (NumaNode(0, cores, None),)


def cpu_slug(model: str, cores: int) -> str:
    """Folder name for what belongs to a CPU: `cpu-amd-epyc-2c`."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", model.lower())
    return f"cpu-{'-'.join(re.findall('[a-z0-9]+', words)) or 'unknown'}-{cores}c"


def _meminfo(text: str) -> dict[str, int]:
    """Values in bytes of a file such as /proc/meminfo, whose `kB` are 1024 bytes."""
    return {name: int(number) * 1024 for name, number in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}


def _siblings(root: Path, cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    groups = set()
    for core in cores:
        listed = read_text(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        groups.add(tuple(sibling for sibling in core_list(listed) if sibling in cores) or (core,))
    return tuple(sorted(groups))


def _caches(root: Path, cores: tuple[int, ...]) -> tuple[Cache, ...]:
    """Each cache is told by the cores that share it."""
    shared: dict[tuple[int, str, int], set[str]] = {}
    for core in cores:
        for folder in (root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index[0-9]*"):
            level, kind, size = (read_text(folder / name) for name in ("level", "type", "size"))
            if level.isdecimal() and re.fullmatch(r"\d+[KMG]?", size):
                key = (int(level), kind.lower(), _cache_bytes(size))
                shared.setdefault(key, set()).add(read_text(folder / "shared_cpu_list") or str(core))
    return tuple(Cache(*key, count=len(sharers)) for key, sharers in sorted(shared.items()))


def _cache_bytes(text: str) -> int:
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
    return int(text.rstrip("KMG")) * unit
