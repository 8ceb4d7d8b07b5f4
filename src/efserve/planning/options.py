"""Everything `efserve plan` can be told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What `efserve plan` was asked for; its fields are the options of the command, and told there."""

    rate: tuple[tuple[str, float], ...] = ()
    slo: tuple[tuple[str, float], ...] = ()
    workload: Path | None = None
    devices: tuple[int, str] = (0, "")  # count and kind; 0: this machine's; no kind: its own, or the only one profiled
    memory_mb: float = 0.0
    profiles: Path = Path("profiled_data")
    precision: tuple[str, ...] = ()
    policy: str = "best"
    max_partitions: int = 0
    headroom_pct: float = 0.0
    objective: str = "devices"
    arrivals: str = "poisson"
    budget_s: float = 5.0
    interference: Path | None = None  # None: the pairs measured beside the profiles, where there are any
    no_interference: bool = False
    check: Path | None = None
    output: Path | None = None
    plot: Path | None = None
    json: bool = False
