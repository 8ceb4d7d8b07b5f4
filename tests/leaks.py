"""What this process holds of the kernel's: for tests that nothing is left behind."""

from pathlib import Path


def open_descriptors() -> dict[str, str]:
    """What each open file descriptor is, by number."""
    found = Path("/proc/self/fd").iterdir()
    return {link.name: str(link.readlink()) for link in found if link.is_symlink()}


def open_areas() -> int:
    """How many descriptors of shared memory are open."""
    return sum("memfd:efserve" in target for target in open_descriptors().values())


def mapped_areas() -> int:
    """How many mappings of shared memory there are."""
    return Path("/proc/self/maps").read_text().count("memfd:efserve")


def children() -> set[int]:
    """Processes that this one has started and not yet reaped, but for Python's own watcher of shared memory names."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return {int(pid) for line in lists for pid in line.split() if not _is_resource_tracker(pid)}


def _is_resource_tracker(pid: str) -> bool:
    """Whether this is the process that `multiprocessing.shared_memory` starts, and keeps until the end."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def is_running(pid: int) -> bool:
    """False when the process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
