"""What a frontend needs of the server: a table of loaded models, and somewhere to hand requests to.

Protocols only; the real service is composed in the server program, the tests bring their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from efserve.codec.regions import ClientMemory
from efserve.counters import ModelCounters
from efserve.inference import InferRequest
from efserve.model_config import ModelConfig
from efserve.partition import CPU


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index; `version` is empty for a model of which no version was ever loaded."""

    name: str
    version: str = ""
    state: str = ""  # READY, UNAVAILABLE, LOADING or UNLOADING
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """One loaded instance in its worker process: what it was to get of its device, and what it has got."""

    model: str
    version: str
    instance: int  # from 0; the same for a worker that takes the place of one that has died
    pid: int
    state: str
    rss_bytes: int
    cores: tuple[int, ...]  # that it is pinned to, as read back; empty: it is not pinned
    device: str = "cpu"  # or the uuid of a GPU
    threads: int = 1  # of its engine
    process_threads: int = 0  # that its process had when it was ready, the engine's among them
    share_pct: float = 0.0  # that was asked for; 0: none
    obtained_pct: float = 0.0  # of the device, as read back; 0: not known
    sm_count: int = 0  # SMs that it sees; 0: not on a GPU
    means: str = ""  # of a share of a GPU: "mps" or "green"
    memory_limit_bytes: int = 0  # 0: none

    @property
    def is_beyond_memory(self) -> bool:
        """Whether it uses more of the host's memory than it was to; on a GPU, MPS sees to the limit."""
        return self.device == CPU and 0 < self.memory_limit_bytes < self.rss_bytes


class Model(Protocol):
    """One loaded version of a model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def version(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Class labels by output name."""

    @property
    def templates(self) -> dict[bytes, Any]:
        """Cache of the codec, keyed by request heads; starts empty and dies with the model."""

    @property
    def memory(self) -> ClientMemory:
        """What clients have registered at this server."""

    @property
    def counters(self) -> ModelCounters: ...

    def submit(self, request: InferRequest) -> None:
        """Call `request.done` now or later, exactly once, also with errors."""


class Service(Protocol):
    """The server as its frontends see it."""

    def model(self, name: str, version: str) -> Model:
        """The named version, or the latest ready one for ""; raises NotFound or Unavailable."""

    def models(self) -> Sequence[Model]:
        """Every version that is ready."""

    def index(self, only_ready: bool) -> Sequence[IndexEntry]: ...
    def placements(self) -> Sequence[Placement]: ...
    def live(self) -> bool: ...
    def ready(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class LoadOverrides:
    """What a load request brings in place of what is in the repository; a config alone, or a config and files."""

    config_json: str = ""  # ModelConfig as JSON; empty: the model's own
    files: Mapping[str, bytes] = field(default_factory=dict)  # path below the model's folder -> content


class ModelControl(Protocol):
    """Loads and unloads models while the server runs."""

    async def load(self, name: str, overrides: LoadOverrides) -> None:
        """Returns when requests go to the new workers; raises what kept the model as it was."""

    async def unload(self, name: str) -> None:
        """Returns when new requests find no such model any more."""


class TraceSettings(Protocol):
    """What is traced, of all models or of one."""

    def get(self, model: str = "") -> dict[str, object]: ...
    def update(self, changes: dict[str, Any], model: str = "") -> None: ...


class LogSettings(Protocol):
    """What the server's log shows."""

    def get(self) -> dict[str, object]: ...
    def update(self, changes: dict[str, Any]) -> None: ...
