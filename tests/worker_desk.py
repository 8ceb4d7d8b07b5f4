"""Workers for tests: specs of models, and a desk that sends requests to a real one and takes its answers."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import uvloop

from efserve.errors import LoadFailed
from efserve.inference import BatchTiming, InferRequest, Outcome, Outputs
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec, encode_bytes, to_array
from efserve.worker.handle import Worker, WorkerSpec, WorkerState
from leaks import children, is_running, mapped_areas, open_areas, open_descriptors

Array = npt.NDArray[Any]

ZOO = Path(__file__).parent / "models"
ROW = (TensorSpec("input", "FP32", (4,)),)
OUT = (TensorSpec("output", "FP32", (4,)),)
DEADLINE_S = 30.0


def onnx_spec(folder: Path, **changes: Any) -> WorkerSpec:
    spec = WorkerSpec(ModelConfig(folder.parent.name), "1", folder, "onnx", Partition(), 8)
    return replace(spec, **changes)


def zoo_spec(name: str, **parameters: str) -> WorkerSpec:
    config = ModelConfig(name, "python", 4, ROW, OUT, parameters=parameters)
    return WorkerSpec(config, "1", ZOO / name / "1", "python", Partition(), 4)


def echo_spec() -> WorkerSpec:
    datatypes = {"text": "BYTES", "number": "FP32", "count": "INT64"}
    inputs = tuple(TensorSpec(name, datatype, (-1,)) for name, datatype in datatypes.items())
    outputs = tuple(replace(spec, name=f"{spec.name}_out") for spec in inputs)
    config = ModelConfig("echo", "python", 8, inputs, outputs)
    return WorkerSpec(config, "1", ZOO / "echo" / "1", "python", Partition(), 8)


def request(*arrays: Array) -> InferRequest:
    def wire(array: Array) -> bytes:
        return encode_bytes(array.ravel().tolist()) if array.dtype == object else array.tobytes()

    shapes = tuple(array.shape for array in arrays)
    return InferRequest(tuple(map(wire, arrays)), shapes, shapes[0][0], None, lambda _: None)


def rows(count: int, columns: int = 4, start: int = 0) -> Array:
    return np.arange(start, start + count * columns, dtype=np.float32).reshape(count, columns)


@dataclass
class Desk:
    """Starts one worker, sends it batches and waits for their answers."""

    spec: WorkerSpec
    deaths: list[str] = field(default_factory=list)
    answers: dict[int, asyncio.Future[tuple[list[Outcome], BatchTiming | None]]] = field(default_factory=dict)
    before_kill: Callable[[int], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.dead = asyncio.Event()
        self.worker = Worker(self.spec, on_done=self._done, on_death=self._died, before_kill=self.before_kill)

    async def __aenter__(self) -> "Desk":
        await self.worker.start(DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stop(DEADLINE_S)
        assert self.worker.state is WorkerState.DEAD

    def send(self, slot: int, *requests: InferRequest) -> None:
        self.answers[slot] = asyncio.get_running_loop().create_future()
        self.worker.send(slot, requests)

    async def ask(self, *requests: InferRequest, slot: int = 0) -> list[Outcome]:
        self.send(slot, *requests)
        return (await self.answers[slot])[0]

    async def infer(self, *arrays: Array, slot: int = 0) -> Outputs:
        (outcome,) = await self.ask(request(*arrays), slot=slot)
        assert isinstance(outcome, tuple), outcome
        return outcome

    def _done(self, worker: Worker, slot: int, outcomes: list[Outcome], timing: BatchTiming | None) -> None:
        assert worker is self.worker
        self.answers[slot].set_result((outcomes, timing))

    def _died(self, worker: Worker, reason: str) -> None:
        assert worker.state is WorkerState.DEAD
        self.deaths.append(reason)
        self.dead.set()


def run(spec: WorkerSpec, body: Callable[[Desk], Awaitable[None]], runner: Any = uvloop.run) -> None:
    """`body` with a READY worker, which is stopped afterwards; then nothing of it may be left."""

    async def whole() -> None:
        before = open_descriptors()
        async with Desk(spec) as desk:
            await body(desk)
        assert not is_running(desk.worker.pid)
        assert open_descriptors() == before

    runner(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def fails_to_start(spec: WorkerSpec, deadline_s: float = DEADLINE_S) -> str:
    async def whole() -> str:
        desk = Desk(spec)
        with pytest.raises(LoadFailed) as failure:
            await desk.worker.start(deadline_s)
        assert desk.worker.state is WorkerState.DEAD
        assert desk.deaths == []
        await desk.worker.stop(1)
        return str(failure.value)

    text = uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())
    return text


def affinities(pid: int) -> set[tuple[int, ...]]:
    """The cores that the threads of a process may use."""
    return {tuple(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{pid}/task").iterdir()}


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(variable.split("=", 1) for variable in variables if variable)


async def opened(fifo: Path) -> None:
    """Wait until a model has opened the fifo, by which it says how far it is."""
    await asyncio.to_thread(lambda: fifo.open().close())


def values(outputs: Outputs, index: int = 0, datatype: str = "FP32") -> Array:
    return to_array(outputs[index].data, datatype, outputs[index].shape)


def script_spec(repository: Path, model: str) -> WorkerSpec:
    pytest.importorskip("torch")
    import torchscript_models

    folder = torchscript_models.save(repository, getattr(torchscript_models, model)())
    outputs = (TensorSpec("first", "FP32", (4,)), TensorSpec("second", "FP32", (4,)))
    config = ModelConfig("script", "torchscript", 8, ROW, outputs)
    return WorkerSpec(config, "1", folder, "torchscript", Partition(), 8)
