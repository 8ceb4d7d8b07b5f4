"""The host's processor: which cores this process may use, and what its kind is called."""

import os
import re


def available_cores() -> tuple[int, ...]:
    """Cores that this process may run on, in ascending order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_slug(model: str, cores: int) -> str:
    """Folder name for what belongs to a CPU: `cpu-amd-epyc-2c`."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", model.lower())
    return f"cpu-{'-'.join(re.findall('[a-z0-9]+', words)) or 'unknown'}-{cores}c"
