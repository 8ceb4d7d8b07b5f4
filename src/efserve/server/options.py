"""Everything `efserve serve` can be told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Options of the server; 0, "" and () mean: as the model's own config or this machine says."""

    model_repository: tuple[Path, ...] = (Path("model_dir"),)
    model: tuple[str, ...] = ()
    engine: str = ""
    instances: int = 0
    threads: int = 0
    max_batch: int = 0
    queue_delay_us: int = -1  # -1: as the config says
    spin: bool = False
    host: str = "127.0.0.1"
    http_port: int = 8000
    metrics_port: int = 8002
    max_request_bytes: int = 64 * 2**20
    load_timeout_s: float = 300.0
    drain_s: float = 30.0
    server_name: str = "efserve"
    ready_file: Path | None = None
    exit_on_error: bool = False
    exit_with_parent: bool = False
