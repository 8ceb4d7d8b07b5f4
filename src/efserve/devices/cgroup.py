"""What control groups leave this process of the machine: processor time, cores, memory. Versions 1 and 2, or both.

Owns the reading of their files. A limit of any ancestor holds below it, so the tightest of all is what counts.
Files: proc_pid_cgroup(5), proc_pid_mountinfo(5), cgroups(7), and the kernel's admin-guide/cgroup-v1 and cgroup-v2.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_MEMORY_LIMIT_BYTES = 1 << 60  # version 1 writes "no limit" as the largest number of whole pages


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The limits that hold for this process; None: no control group sets one."""

    versions: tuple[int, ...] = ()  # of the hierarchies that were found
    cpu_quota_cores: float | None = None  # processor time per time, in cores
    cores: tuple[int, ...] | None = None  # of the cpuset, ascending
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group of this process or an ancestor of one, and the controllers that it may limit."""

    folder: Path
    version: int
    controllers: frozenset[str]


def cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits over all control groups of this process; `root` is where /proc and /sys are looked for."""
    groups = tuple(_groups(root))
    quotas = [quota for group in groups if (quota := _cpu_quota(group)) is not None]
    sets = [cores for group in groups if (cores := _cpuset(group))]
    memories = [limit for group in groups if (limit := _memory_limit(group)) is not None]
    return CgroupLimits(
        versions=tuple(sorted({group.version for group in groups})),
        cpu_quota_cores=min(quotas, default=None),
        cores=tuple(sorted(set.intersection(*sets))) if sets else None,
        memory_limit_bytes=min(memories, default=None),
    )


def core_list(text: str) -> tuple[int, ...]:
    """Cores of the kernel's list format, in ascending order: `0-2,7` is 0, 1, 2, 7."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def core_ranges(cores: Sequence[int]) -> str:
    """Ascending cores in the kernel's list format, as `core_list` reads it."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], core]
        else:
            runs.append([core])
    return ",".join("-".join(map(str, run)) for run in runs)


def read_text(path: Path) -> str:
    """A file of the kernel without white space at its ends; empty where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _groups(root: Path) -> Iterator[_Group]:
    """This process's groups, each followed by its ancestors as far as they are mounted here."""
    memberships = _memberships(read_text(root / "proc/self/cgroup"))
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.partition(" ")
        if kind not in {"cgroup", "cgroup2"}:
            continue
        version = 2 if kind == "cgroup2" else 1
        known = {name: path for name, path in memberships.items() if bool(name) == (version == 1)}
        names = {""} if version == 2 else set(options.split(" ")[-1].split(",")) & known.keys()
        path = next((known[name] for name in names if name in known), None)
        if path is None:
            continue
        mount_root, mount_point = map(_unescaped, mount.split(" ")[3:5])
        top = root / mount_point.lstrip("/")
        for folder in _from_the_top(top, _below(path, mount_root)):
            yield _Group(folder, version, frozenset(names))


def _memberships(text: str) -> dict[str, PurePosixPath]:
    """Controller -> path of this process's group; the empty controller is version 2."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = PurePosixPath(path)
    return found


def _below(path: PurePosixPath, mount_root: str) -> PurePosixPath:
    """The group's path within a mount; the mount itself where the group lies outside, as in some containers."""
    return path.relative_to(mount_root) if path.is_relative_to(mount_root) else PurePosixPath()


def _from_the_top(top: Path, below: PurePosixPath) -> Iterator[Path]:
    folder = top
    yield folder
    for part in below.parts:
        folder /= part
        yield folder


def _cpu_quota(group: _Group) -> float | None:
    if group.version == 2:
        quota, _, period = read_text(group.folder / "cpu.max").partition(" ")
    elif "cpu" in group.controllers:
        quota = read_text(group.folder / "cpu.cfs_quota_us")
        period = read_text(group.folder / "cpu.cfs_period_us")
    else:
        return None
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cpuset(group: _Group) -> set[int]:
    """The group's cores; empty where it sets none."""
    if group.version == 2:
        return set(core_list(read_text(group.folder / "cpuset.cpus.effective")))
    if "cpuset" not in group.controllers:
        return set()
    effective = read_text(group.folder / "cpuset.effective_cpus")
    return set(core_list(effective or read_text(group.folder / "cpuset.cpus")))


def _memory_limit(group: _Group) -> int | None:
    if group.version == 2:
        text = read_text(group.folder / "memory.max")
    elif "memory" in group.controllers:
        text = read_text(group.folder / "memory.limit_in_bytes")
    else:
        return None
    return int(text) if text.isdecimal() and int(text) < _NO_MEMORY_LIMIT_BYTES else None


def _unescaped(text: str) -> str:
    """A path of mountinfo, where white space and backslashes are octal: `\\040` is a space."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
