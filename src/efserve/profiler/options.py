"""Everything `efserve profile` can be told."""

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """What `efserve profile` was asked for; its fields are the options of the command, and told there."""

    model_repository: tuple[Path, ...] = (Path("model_dir"),)
    model: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()  # empty: every engine that has a file
    grid: bool = False
    batches: tuple[int, ...] = ()
    max_batch: int = 0  # 0: DEFAULT_MAX_BATCH, or the model's own where that is larger
    device: str = "auto"  # a GPU where there is one, else the CPU; or cpu, gpu0, gpu1, ..., a uuid
    cores: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()  # in percent
    pairs: bool = False
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict)  # input -> dims, without a batch
    min_repetitions: int = 20
    min_time_s: float = 1.0
    output: Path = Path("profiled_data")
    resume: bool = False
    force: bool = False
    slo_ms: float | None = None
    roofline: bool = False
    plot: bool = False
    json: bool = False
