"""Real stand-ins for the parts behind a frontend: models that answer at once, later, or when told to."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from efserve.counters import ModelCounters
from efserve.errors import NotFound, Unavailable
from efserve.frontend.service import IndexEntry, Placement
from efserve.inference import BatchTiming, InferRequest, Outcome, OutputTensor
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.tensors import TensorSpec
from efserve.transport.regions import ClientRegions

Answerer = Callable[[InferRequest], Outcome]


def echo(request: InferRequest) -> Outcome:
    """Every input is an output."""
    pairs = zip(request.shapes, request.tensors, strict=True)
    return tuple(OutputTensor(shape, bytes(data)) for shape, data in pairs)


def identity_config(name: str = "identity", datatype: str = "FP32", dims: tuple[int, ...] = (16,)) -> ModelConfig:
    """One input, one output, batches of up to 8 rows."""
    return ModelConfig(
        name=name,
        engine="onnx",
        max_batch_size=8,
        inputs=(TensorSpec("input", datatype, dims),),
        outputs=(TensorSpec("output", datatype, dims),),
        dynamic_batching=DynamicBatching(),
    )


class FakeModel:
    """A model version that answers by a function: at once, or (`held`) when a test says so."""

    def __init__(
        self,
        config: ModelConfig,
        answer: Answerer = echo,
        *,
        version: str = "1",
        labels: dict[str, tuple[str, ...]] | None = None,
        held: bool = False,
        memory: ClientRegions | None = None,
    ) -> None:
        self.config = config
        self.version = version
        self.engine = config.engine or "onnx"
        self.labels = labels or {}
        self.templates: dict[bytes, object] = {}
        self.memory = memory or ClientRegions()
        self.counters = ModelCounters(pending=lambda: len(self.waiting))
        self.waiting: list[InferRequest] = []
        self._answer = answer
        self._held = held

    def submit(self, request: InferRequest) -> None:
        """Take one request."""
        if self._held:
            self.waiting.append(request)
        else:
            self.finish(request)

    def finish(self, request: InferRequest) -> None:
        """Answer one request now."""
        if request in self.waiting:
            self.waiting.remove(request)
        now_ns = time.monotonic_ns()
        outcome = self._answer(request)
        if isinstance(outcome, tuple):
            timing = BatchTiming(request.arrival_ns + 10, request.arrival_ns + 20, now_ns, now_ns)
            self.counters.batch_done([request], request.rows, timing, now_ns)
        else:
            self.counters.failed("BACKEND")
        request.done(outcome)


class FakeService:
    """A table of fake models."""

    def __init__(self, *models: FakeModel) -> None:
        self.table = {(model.config.name, model.version): model for model in models}
        self.unready: set[str] = set()
        self.is_live = self.is_ready = True

    def model(self, name: str, version: str) -> FakeModel:
        """The version asked for, or the latest."""
        versions = [number for other, number in self.table if other == name]
        if not versions:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if name in self.unready and version:
            raise Unavailable(f"Request for unknown model: '{name}' version {version} is not at ready state")
        if name in self.unready:
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        found = self.table.get((name, version or max(versions)))
        if found is None:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        return found

    def models(self) -> Sequence[FakeModel]:
        """All of them."""
        return list(self.table.values())

    def index(self, only_ready: bool) -> Sequence[IndexEntry]:
        """One entry per model; those made unready have a reason."""
        entries = [
            IndexEntry(name, version, "UNAVAILABLE", "made unready")
            if name in self.unready
            else IndexEntry(name, version, "READY")
            for name, version in self.table
        ]
        return [entry for entry in entries if entry.state == "READY" or not only_ready]

    def placements(self) -> Sequence[Placement]:
        """One made-up placement per model."""
        return [Placement(name, version, 0, 4242, "READY", 1 << 20, (0, 1)) for name, version in self.table]

    def live(self) -> bool:
        """As the test says."""
        return self.is_live

    def ready(self) -> bool:
        """As the test says."""
        return self.is_ready


class MemoryTransport(asyncio.Transport):
    """A client connection in memory: keeps what is written, and tells whether reading goes on."""

    def __init__(self, protocol: asyncio.BufferedProtocol, peer: tuple[str, int] = ("127.0.0.1", 9)) -> None:
        super().__init__({"peername": peer})
        self.written = bytearray()
        self.is_open = True
        self.has_eof = self.is_aborted = False
        self.reading = True
        self.unsent_bytes = 0
        self._protocol = protocol
        protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """Bytes arrive from the client, as a real transport hands them over: as long as somebody reads."""
        rest = memoryview(data)
        while len(rest) and self.reading and self.is_open:
            buffer = memoryview(self._protocol.get_buffer(-1))
            part = rest[: len(buffer)]
            buffer[: len(part)] = part
            self._protocol.buffer_updated(len(part))
            rest = rest[len(part) :]

    def taken(self) -> bytes:
        """What was written since the last call."""
        data = bytes(self.written)
        self.written.clear()
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def is_closing(self) -> bool:
        return not self.is_open

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._protocol.connection_lost(None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes
