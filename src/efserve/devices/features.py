"""What the host's processor can do, as the kernel lists it."""

from functools import cache
from pathlib import Path

_IDENTITY = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU implementer", "Features")


@cache
def cpu_identity() -> str:
    """What tells one kind of core from another: maker, model and features of the first core."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in first if line.partition(":")[0].strip() in _IDENTITY)


def has_vnni() -> bool:
    """Whether products of 8-bit numbers are summed in 32 bits by one instruction (x86; other processors always do)."""
    lines = cpu_identity().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags is None or "avx512_vnni" in flags or "avx_vnni" in flags
