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


def mps_run_directory() -> Path:
    """Where MPS daemons of this user have their pipes and logs unless told otherwise; the same as in start_MPS.sh."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"efserve-mps-{os.getuid()}"
