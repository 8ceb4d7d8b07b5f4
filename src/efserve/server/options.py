"""Everything `efserve serve` can be told."""

from dataclasses import dataclass
from pathlib import Path

from efserve.errors import UsageError
from efserve.repository import ModelFolder
from efserve.shares import MemoryLimit, Share


def parse_cache_bytes(text: str) -> int:
    """`BYTES`, or `local,size=BYTES` as Triton's `--cache-config` has it; raises UsageError for anything else."""
    number = text.removeprefix("local,size=")
    if not (number.isascii() and number.isdigit()):
        raise UsageError(
            f"the size of the response cache is '{text}', expected a number of bytes such as 10000000, or "
            "local,size=10000000; there is no other cache than the local one"
        )
    return int(number)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Options of the server; None, "" and () mean: as the model's own config or this machine says."""

    model_repository: tuple[Path, ...] = (Path("model_dir"),)
    model: tuple[str, ...] = ()
    engine: str = ""
    trt: bool = False  # TensorRT for every model that has an ONNX file
    instances: int | None = None
    threads: int | None = None
    share: tuple[Share, ...] = ()  # of devices, for single instances
    memory_limit: tuple[MemoryLimit, ...] = ()
    plan: Path | None = None
    late: str = "drop"  # drop or serve: what can no longer keep the SLO of the plan
    max_batch: int | None = None
    queue_delay_us: int | None = None
    spin: bool = False
    strict_provider: bool = False
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    grpc: bool = True
    metrics_port: int = 8002
    listen: tuple[str, ...] = ()  # more addresses: HOST:PORT or unix:PATH
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_request_bytes: int = 64 * 2**20
    mps: str = "auto"  # auto, on, off
    load_timeout_s: float = 300.0
    drain_s: float = 30.0
    server_name: str = "efserve"
    model_control_mode: str = "none"  # none, poll, explicit
    load_model: tuple[str, ...] = ()
    repository_poll_secs: float = 15.0
    cache_bytes: int = 0  # of the response cache; 0: none
    allow_client_shm: bool = False
    admin_token_file: Path | None = None
    trace_file: Path | None = None
    trace_config: tuple[str, ...] = ()  # KEY=VALUE, as Triton's
    ready_file: Path | None = None
    strict_readiness: bool = True  # ready when all models are
    exit_on_error: bool = False
    exit_with_parent: bool = False

    def engine_for(self, folder: ModelFolder, version: int) -> str:
        """The engine that the command line wants for a version; empty: whatever the model's own config says."""
        return "tensorrt" if self.trt and "tensorrt" in folder.engines(version) else self.engine
