"""What the environment says. It is read here and nowhere else; what children inherit is their starter's business."""

import os
from pathlib import Path

from efserve.errors import UsageError


def delay_scheduler() -> int:
    """TRITONSERVER_DELAY_SCHEDULER: requests that must wait at once before a model's first batch runs; 0: none."""
    text = os.environ.get("TRITONSERVER_DELAY_SCHEDULER", "0")
    if not text.strip().isdecimal():
        raise UsageError(f"TRITONSERVER_DELAY_SCHEDULER is '{text}', expected a number of requests")
    return int(text)


def cuda_environment() -> dict[str, str]:
    """Variables that decide which GPUs, and how much of them, the CUDA programs started here get."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"} or name.startswith("CUDA_MPS_")
    }


def mps_run_directory() -> Path:
    """Where MPS daemons of this user have their pipes and logs unless told otherwise; the same as in start_MPS.sh."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"efserve-mps-{os.getuid()}"
