"""What the environment says. It is read here and nowhere else; what children inherit is their starter's business."""

import os
from dataclasses import dataclass
from pathlib import Path

from efserve.errors import UsageError


@dataclass(frozen=True, slots=True)
class KeptForms:
    """Where the optimized forms of models may be kept."""

    is_off: bool
    folder: Path | None  # instead of beside the models
    user_folder: Path  # where there is no writing beside the models


def kept_forms() -> KeptForms:
    """EFSERVE_CACHE: `off` keeps no optimized forms of models; a folder takes all; unset, each is beside its model."""
    text = os.environ.get("EFSERVE_CACHE", "")
    user = Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME') or os.devnull}/.cache") / "efserve"
    return KeptForms(text == "off", Path(text) if text not in ("", "off") else None, user)


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
