"""Shares and memory limits as a command line gives them: values, and the text that they are read from."""

import re
from dataclasses import dataclass

from efserve.errors import UsageError

SMALLEST_LIMIT_BYTES = 2**20  # less is no process, but a unit that was forgotten
LARGEST_LIMIT_BYTES = 2**50

_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Share:
    """`--share`: percent of a device for one instance of a model."""

    model: str
    pct: float
    device: str = ""  # cpu, gpu0 or a uuid; empty: as the model's config says, else the CPU


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """`--memory-limit`: what each instance of a model may use of its device's memory."""

    model: str
    limit_bytes: int


def parse_share(text: str) -> Share:
    """`MODEL=PCT[,DEVICE]`; raises UsageError for anything else."""
    model, _, rest = text.rpartition("=")
    number, comma, device = rest.partition(",")
    try:
        pct = float(number.removesuffix("%"))
    except ValueError:
        pct = 0.0
    if not model or not 0 < pct <= 100 or (comma and not device):
        raise UsageError(
            f"--share is '{text}', expected MODEL=PCT or MODEL=PCT,DEVICE with a percentage above 0, up to 100, such "
            "as digits=50 or resnet50=40,gpu0"
        )
    return Share(model, pct, device)


def parse_memory_limit(text: str) -> MemoryLimit:
    """`MODEL=SIZE` with a size such as 512M or 4G, in powers of 1024; raises UsageError for anything else."""
    model, _, size = text.rpartition("=")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", size, re.IGNORECASE)
    limit_bytes = float(found[1]) * _SIZE_UNITS[found[2].upper()] if found else 0.0
    if not model or not SMALLEST_LIMIT_BYTES <= limit_bytes <= LARGEST_LIMIT_BYTES:
        raise UsageError(
            f"--memory-limit is '{text}', expected MODEL=SIZE from 1M to 1024T, such as digits=512M or resnet50=4G"
        )
    return MemoryLimit(model, round(limit_bytes))
