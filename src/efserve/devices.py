"""Devices and the parts of them that a worker may be given."""

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partition:
    """A share of one device. On the CPU: `threads` engine threads, pinned to `cores` unless that is empty."""

    device: str = "cpu"
    threads: int = 1
    cores: tuple[int, ...] = ()


def available_cores() -> tuple[int, ...]:
    """Cores that this process may run on, in ascending order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_slug(model: str, cores: int) -> str:
    """Folder name for what belongs to a CPU: `cpu-amd-epyc-2c`."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", model.lower())
    return f"cpu-{'-'.join(re.findall('[a-z0-9]+', words)) or 'unknown'}-{cores}c"
