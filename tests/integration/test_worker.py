"""Real worker processes: answers, deaths at every stage, deadlines, and that nothing is left behind."""

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import uvloop

import onnx_models
from efserve.devices.cpu import available_cores
from efserve.errors import InferenceFailed, LoadFailed
from efserve.inference import BatchTiming, InferRequest, Outcome, Outputs
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec, encode_bytes, to_array
from efserve.worker.handle import Worker, WorkerSpec, WorkerState
from leaks import children, is_running, mapped_areas, open_areas, open_descriptors

Array = npt.NDArray[Any]

ZOO = Path(__file__).parents[1] / "models"
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


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run])
def test_requests_share_a_batch_and_get_their_own_rows(tmp_path: Path, runner: Any) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)), request(rows(3, start=100)), request(rows(2, start=200)))
        desk.send(1, request(rows(2, start=300)))
        outcomes, timing = await desk.answers[0]
        for outcome, expected in zip(outcomes, (rows(1), rows(3, start=100), rows(2, start=200)), strict=True):
            assert isinstance(outcome, tuple)
            np.testing.assert_array_equal(values(outcome), expected)
        assert timing is not None
        assert timing.start_ns <= timing.input_ns <= timing.infer_ns <= timing.output_ns <= monotonic() * 1e9
        (second,), _ = await desk.answers[1]
        assert isinstance(second, tuple)
        np.testing.assert_array_equal(values(second), rows(2, start=300))

    run(onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4))), body, runner)


def test_the_config_is_completed_by_the_file(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        facts = desk.worker.facts
        assert facts is not None
        assert facts.config.max_batch_size == 8
        assert facts.config.inputs == (TensorSpec("a", "FP32", (4,)), TensorSpec("b", "FP32", (4,)))
        assert [spec.name for spec in facts.config.outputs] == ["sum", "difference"]
        assert facts.pid == desk.worker.pid
        assert facts.engine_version.startswith("onnxruntime ")
        assert 0 < facts.load_s < facts.start_s < DEADLINE_S
        outputs = await desk.infer(rows(2), rows(2, start=1))
        np.testing.assert_array_equal(values(outputs, 0), rows(2) + rows(2, start=1))
        np.testing.assert_array_equal(values(outputs, 1), rows(2) - rows(2, start=1))

    run(onnx_spec(onnx_models.save(tmp_path, "add_sub", onnx_models.add_sub())), body)


def test_only_the_outputs_of_the_config_come_back_in_its_order(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "add_sub", onnx_models.add_sub())
    inputs = (TensorSpec("b", "FP32", (4,)), TensorSpec("a", "FP32", (4,)))
    config = ModelConfig("add_sub", "onnx", 8, inputs, (TensorSpec("difference", "FP32", (4,)),))

    async def body(desk: Desk) -> None:
        outputs = await desk.infer(rows(1), rows(1, start=7))
        assert len(outputs) == 1
        np.testing.assert_array_equal(values(outputs), np.full((1, 4), 7, np.float32))

    run(onnx_spec(folder, config=config), body)


def test_the_maximum_batch_can_be_forced(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert desk.worker.facts is not None
        assert desk.worker.facts.config.max_batch_size == 3

    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(4))
    run(onnx_spec(folder, force_max_batch=3), body)


def test_free_dimensions_of_any_size(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        for length in (1, 3, 1000, 2, 700_000, 5):
            batch = [rows(2, length), rows(1, length, start=9)]
            outcomes = await desk.ask(*map(request, batch))
            for outcome, array in zip(outcomes, batch, strict=True):
                assert isinstance(outcome, tuple)
                np.testing.assert_array_equal(values(outcome, 0), 2 * array)
                np.testing.assert_array_equal(values(outcome, 1), array[:, :1])

    run(onnx_spec(onnx_models.save(tmp_path, "dynamic", onnx_models.dynamic())), body)


def test_a_model_without_a_batch_dimension(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert desk.worker.facts is not None
        assert not desk.worker.facts.config.batches
        array = rows(2, 3)
        np.testing.assert_array_equal(values(await desk.infer(array)), array.T)

    run(onnx_spec(onnx_models.save(tmp_path, "transpose", onnx_models.without_batch())), body)


def test_strings_through_onnx(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        first = np.array([[b"", "löwe".encode()], [b"x" * 5000, b"c"]], object)
        second = np.array([[b"1", b"2"]], object)
        one, two = await desk.ask(request(first), request(second))
        assert isinstance(one, tuple)
        assert isinstance(two, tuple)
        assert values(one, 0, "BYTES").tolist() == [[b"", "löwe".encode()], [b"x" * 5000, b"c"]]
        assert values(two, 0, "BYTES").tolist() == second.tolist()
        (bad,) = await desk.ask(request(np.array([[b"\xff"]], object)))
        assert isinstance(bad, InferenceFailed)
        assert "UTF-8" in str(bad)

    run(onnx_spec(onnx_models.save(tmp_path, "strings", onnx_models.string_identity())), body)


def test_strings_and_numbers_of_any_length() -> None:
    async def body(desk: Desk) -> None:
        def arrays(count: int, length: int) -> tuple[Array, Array, Array]:
            text = np.array([[b"%d" % i * (i % 7) for i in range(length)]] * count, object).reshape(count, length)
            return text, rows(count, length), np.arange(count * length, dtype=np.int64).reshape(count, length)

        for length in (0, 1, 5, 3000):
            batch = [arrays(1, length), arrays(3, length)]
            outcomes = await desk.ask(*[request(*each) for each in batch])
            for outcome, (text, number, count) in zip(outcomes, batch, strict=True):
                assert isinstance(outcome, tuple)
                assert values(outcome, 0, "BYTES").tolist() == text.tolist()
                np.testing.assert_array_equal(values(outcome, 1), number)
                np.testing.assert_array_equal(values(outcome, 2, "INT64"), count)

    run(echo_spec(), body)


def test_bfloat16(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        array = np.arange(8, dtype=np.uint16).reshape(2, 4)
        np.testing.assert_array_equal(values(await desk.infer(array), 0, "BF16"), array)

    data = onnx_models.identity(4, onnx_models.BF16)
    run(onnx_spec(onnx_models.save(tmp_path, "bf16", data)), body)


def test_a_request_of_64_mb(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        array = rows(1, 16 << 20)
        outputs = await desk.infer(array)
        assert outputs[0].data == array.tobytes()

    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(16 << 20))
    run(onnx_spec(folder, warmup=False), body)


def test_an_output_much_larger_than_its_input(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        outputs = await desk.infer(np.array([[1.0], [2.0]], np.float32))
        np.testing.assert_array_equal(values(outputs)[:, -1], [1, 2])
        assert len(outputs[0].data) == 32_000_000

    folder = onnx_models.save(tmp_path, "huge", onnx_models.huge_output())
    run(onnx_spec(folder, warmup=False), body)


def test_weights_beside_the_model_file(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert (await desk.infer(np.zeros((2, 1, 28, 28), np.float32)))[0].shape == (2, 10)
        assert desk.worker.rss_bytes() < 150e6

    folder = onnx_models.save_with_external_data(tmp_path, "cnn")
    assert (folder / "model.onnx").stat().st_size < 10_000
    run(onnx_spec(folder), body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises_in_infer", "ValueError: cannot digest this"),
        ("wrong_shape", "output 'output' has shape [2, 3], expected [2, 4] for a batch of 2"),
        ("wrong_rows", "output 'output' has shape [3, 4], expected [2, 4] for a batch of 2"),
        ("missing_output", "output 'output' is missing"),
    ],
)
def test_a_failed_batch_costs_the_worker_nothing(name: str, says: str) -> None:
    async def body(desk: Desk) -> None:
        pid = desk.worker.pid
        for _ in range(2):
            outcomes = await desk.ask(request(rows(1)), request(rows(1)))
            assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 2
            assert says in str(outcomes[0])
        assert desk.worker.pid == pid
        assert desk.worker.state is WorkerState.READY

    run(zoo_spec(name), body)


def test_an_onnx_model_that_fails_says_why(tmp_path: Path) -> None:
    config = ModelConfig("m", "onnx", 8, (TensorSpec("input", "FP32", (-1,)),), (TensorSpec("first", "FP32", (2,)),))
    data = onnx_models.dynamic(first_columns="length")
    folder = onnx_models.save(tmp_path, "m", data)

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(1, 3)))
        assert str(outcome) == "output 'first' has shape [1, 1], expected [1, 2] for a batch of 1"

    run(onnx_spec(folder, config=config), body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises_in_load", ("RuntimeError: the weights are rotten", "Traceback")),
        ("exits_in_load", ("exited with code 3 while it was starting", "no licence found")),
    ],
)
def test_a_model_that_does_not_load(name: str, says: Sequence[str]) -> None:
    text = fails_to_start(zoo_spec(name))
    assert all(part in text for part in says)


def test_a_model_that_loads_for_ever() -> None:
    assert "not ready within 0.5 s" in fails_to_start(zoo_spec("never_ready"), 0.5)


def test_files_that_are_wrong_or_missing(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert "there is no file model.onnx" in fails_to_start(onnx_spec(tmp_path / "1"))
    (tmp_path / "1" / "model.onnx").write_bytes(b"garbage")
    reason = fails_to_start(onnx_spec(tmp_path / "1"))
    assert "/1 cannot be loaded: InvalidProtobuf:" in reason
    assert "\n" not in reason
    assert "there is no engine 'caffe'" in fails_to_start(onnx_spec(tmp_path / "1", engine="caffe"))
    (tmp_path / "1" / "model.py").write_text("class Modell: ...")
    spec = replace(zoo_spec("echo"), folder=tmp_path / "1")
    assert "has no class Model" in fails_to_start(spec)


def test_a_warm_up_that_fails_is_a_failure_to_load(tmp_path: Path) -> None:
    text = fails_to_start(onnx_spec(onnx_models.save(tmp_path, "m", onnx_models.doubles_rows())))
    assert "output 'output'" in text
    assert "has shape {1,4} but the computed output shape for this run is {2,4}" in text


def test_cores_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(4))
    for cores in ((5000,), (available_cores()[0], 900)):
        text = fails_to_start(onnx_spec(folder, partition=Partition("cpu", 1, cores)))
        assert "cannot run on cores" in text
        assert str(cores[-1]) in text


@pytest.mark.parametrize("threads", [1, 2])
def test_a_partition_is_real(tmp_path: Path, threads: int) -> None:
    core = available_cores()[-1]

    async def body(desk: Desk) -> None:
        assert affinities(desk.worker.pid) == {(core,)}
        assert environment(desk.worker.pid)["OMP_NUM_THREADS"] == str(threads)

    folder = onnx_models.save(tmp_path, "cnn", onnx_models.cnn())
    run(onnx_spec(folder, partition=Partition("cpu", threads, (core,))), body)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize(("share_pct", "is_own"), [(100.0, True), (0.0, False)])
def test_threads_keep_to_a_core_each_where_the_cores_are_their_own(
    tmp_path: Path, share_pct: float, is_own: bool
) -> None:
    cores = available_cores()[:2]

    async def body(desk: Desk) -> None:
        found = affinities(desk.worker.pid)
        assert ({cores[:1], cores[1:]} <= found) is is_own
        assert tuple(os.sched_getaffinity(desk.worker.pid)) == (cores[:1] if is_own else cores)

    folder = onnx_models.save(tmp_path, "cnn", onnx_models.cnn())
    run(onnx_spec(folder, partition=Partition("cpu", 2, cores, share_pct)), body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exits_in_infer", "exited with code 3"),
        ("killed_in_infer", "killed by SIGKILL"),
        ("loses_device", "exited with code 1"),
    ],
)
def test_death_with_a_batch_in_hand(name: str, says: str) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        desk.send(1, request(rows(1)))
        await desk.dead.wait()
        assert len(desk.deaths) == 1
        assert desk.deaths[0].startswith(says)
        assert not any(future.done() for future in desk.answers.values())
        desk.worker.kill()

    run(zoo_spec(name), body)


def test_a_kill_is_noticed_at_once(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        start_s = monotonic()
        os.kill(desk.worker.pid, signal.SIGKILL)
        await desk.dead.wait()
        assert monotonic() - start_s < 1
        assert desk.deaths == ["killed by SIGKILL"]
        assert desk.worker.ending == "killed by SIGKILL"

    run(onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4))), body)


def test_a_chatty_model_neither_blocks_nor_breaks_anything() -> None:
    async def body(desk: Desk) -> None:
        for start in range(3):
            np.testing.assert_array_equal(values(await desk.infer(rows(2, start=start))), rows(2, start=start))
        os.kill(desk.worker.pid, signal.SIGKILL)
        await desk.dead.wait()
        assert "I have so much to say" in desk.deaths[0]
        assert len(desk.deaths[0]) < 20_000

    run(zoo_spec("chatty"), body)


def test_an_interrupt_is_not_for_the_worker() -> None:
    async def body(desk: Desk) -> None:
        assert os.getpgid(desk.worker.pid) == os.getsid(desk.worker.pid) == desk.worker.pid
        os.kill(desk.worker.pid, signal.SIGINT)
        np.testing.assert_array_equal(values(await desk.infer(rows(1))), rows(1))

    run(zoo_spec("slow", delay_ms="0"), body)


PARENT_MODEL = """
import os, signal, subprocess, sys

class Model:
    def __init__(self, config, folder):
        self.child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        os.write(2, b"%d" % self.child.pid)

    def infer(self, inputs):
        os.close(int(sys.argv[3]))
        signal.pause()
"""


def test_what_a_model_starts_ends_with_it_and_hides_no_death(tmp_path: Path) -> None:
    """It closes its control socket and goes on for ever, while its child holds its pipes."""
    (tmp_path / "model.py").write_text(PARENT_MODEL)

    async def body(desk: Desk) -> None:
        grandchild = os.pidfd_open(int(desk.worker.stderr_tail))
        desk.send(0, request(rows(1)))
        await desk.dead.wait()
        assert desk.deaths[0].startswith("closed its connection and was killed by SIGKILL")
        assert select.select([grandchild], [], [], 10)[0] == [grandchild]
        os.close(grandchild)

    run(replace(zoo_spec("slow"), folder=tmp_path), body)


def test_a_stop_lets_the_worker_finish(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        desk.send(1, request(rows(2)))
        await desk.worker.stop(DEADLINE_S)
        assert all(future.done() for future in desk.answers.values())
        assert desk.worker.ending == "exited with code 0"
        assert desk.deaths == []

    run(zoo_spec("slow", delay_ms="20"), body)


def test_a_worker_that_hangs_is_stopped_all_the_same(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        await opened(fifo)
        await asyncio.gather(desk.worker.stop(0.1), desk.worker.stop(0.1))
        assert desk.worker.ending == "killed by SIGTERM"
        assert desk.deaths == []
        assert not desk.answers[0].done()

    run(zoo_spec("hangs_in_infer", started=str(fifo)), body)


class Partings:
    """Notes which processes it was told of while they lived."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, pid: int) -> None:
        await asyncio.sleep(0)
        assert is_running(pid)
        self.seen.append(pid)


def test_what_is_to_be_done_before_a_kill_is_done_before() -> None:
    async def whole() -> None:
        partings = Partings()
        async with Desk(zoo_spec("slow", delay_ms="0"), before_kill=partings) as desk:
            desk.worker.kill()
            desk.worker.kill()
            assert desk.worker.state is WorkerState.READY
            await desk.dead.wait()
            assert desk.deaths == ["killed by SIGKILL"]
        assert partings.seen == [desk.worker.pid]
        async with Desk(zoo_spec("slow", delay_ms="0"), before_kill=partings) as desk:
            pass
        assert desk.worker.ending == "exited with code 0"  # as it was asked to
        assert len(partings.seen) == 1

    uvloop.run(whole())


def test_a_worker_that_hangs_parts_before_it_is_ended(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    async def whole() -> None:
        partings = Partings()
        async with Desk(zoo_spec("hangs_in_infer", started=str(fifo)), before_kill=partings) as desk:
            desk.send(0, request(rows(1)))
            await opened(fifo)
            await desk.worker.stop(0.1)
            assert desk.worker.ending == "killed by SIGTERM"
        assert partings.seen == [desk.worker.pid]

    uvloop.run(whole())


def test_a_start_that_takes_too_long_parts_before_its_kill() -> None:
    async def whole() -> None:
        partings = Partings()
        desk = Desk(zoo_spec("never_ready"), before_kill=partings)
        with pytest.raises(LoadFailed, match="not ready within"):
            await desk.worker.start(0.5)
        assert partings.seen == [desk.worker.pid]

    uvloop.run(whole())


def test_a_worker_that_reads_nothing_is_killed() -> None:
    async def body(desk: Desk) -> None:
        os.kill(desk.worker.pid, signal.SIGSTOP)
        for _ in range(1000):
            desk.send(0, request(rows(1)))
        await desk.dead.wait()
        assert desk.deaths == ["read none of its batches and was killed by SIGKILL"]

    run(zoo_spec("hangs_in_infer"), body)


def test_a_start_without_descriptors_fails_and_leaves_nothing(tmp_path: Path) -> None:
    spec = onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4)))

    async def start(descriptors: int) -> bool:
        """Whether a worker starts with so many descriptors more."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = len(open_descriptors())
        desk = Desk(spec)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + descriptors, hard))
        try:
            await desk.worker.start(DEADLINE_S)
        except LoadFailed:
            assert desk.worker.state is WorkerState.DEAD
            return False
        else:
            await desk.worker.stop(DEADLINE_S)
            return True
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert len(open_descriptors()) == before

    async def whole() -> None:
        started = [await start(descriptors) for descriptors in range(40)]
        assert not started[0]
        assert started[-1]

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def test_a_load_that_gives_way_ends_though_nothing_is_left_over() -> None:
    async def whole() -> None:
        desk = Desk(zoo_spec("echo"))
        await desk.worker.start(4, gives_way=True)
        await desk.worker.stop(DEADLINE_S)
        assert desk.worker.ending == "exited with code 0"

    spins = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spins) for _ in range(2 * len(available_cores()))]
    try:
        uvloop.run(whole())
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_stop_ends_a_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")

    async def whole() -> None:
        desk = Desk(zoo_spec("never_ready", started=str(tmp_path / "started")))
        start = asyncio.create_task(desk.worker.start(DEADLINE_S))
        await opened(tmp_path / "started")
        await desk.worker.stop(DEADLINE_S)
        with pytest.raises(LoadFailed, match="stopped while it was starting"):
            await start
        assert desk.worker.ending == "killed by SIGTERM"

    uvloop.run(whole())


def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")

    async def whole() -> None:
        desk = Desk(zoo_spec("never_ready", started=str(tmp_path / "started")))
        start = asyncio.create_task(desk.worker.start(DEADLINE_S))
        await opened(tmp_path / "started")
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not is_running(desk.worker.pid)
        assert desk.worker.state is WorkerState.DEAD

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def test_a_start_that_has_only_just_begun_ends_as_well() -> None:
    async def whole() -> None:
        desks = [Desk(zoo_spec("echo")) for _ in range(2)]
        stopped, cancelled = (asyncio.create_task(desk.worker.start(DEADLINE_S)) for desk in desks)
        await asyncio.sleep(0)
        assert [desk.worker.pid for desk in desks] == [0, 0]
        cancelled.cancel()
        await desks[0].worker.stop(DEADLINE_S)
        with pytest.raises(LoadFailed, match="stopped while it was starting"):
            await stopped
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert {desk.worker.state for desk in desks} == {WorkerState.DEAD}

    before = open_descriptors()
    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())
    assert len(open_descriptors()) <= len(before)


def script_spec(repository: Path, model: str) -> WorkerSpec:
    pytest.importorskip("torch")
    import torchscript_models

    folder = torchscript_models.save(repository, getattr(torchscript_models, model)())
    outputs = (TensorSpec("first", "FP32", (4,)), TensorSpec("second", "FP32", (4,)))
    config = ModelConfig("script", "torchscript", 8, ROW, outputs)
    return WorkerSpec(config, "1", folder, "torchscript", Partition(), 8)


@pytest.mark.parametrize("model", ["InTuple", "InList", "InDict"])
def test_torchscript(tmp_path: Path, model: str) -> None:
    async def body(desk: Desk) -> None:
        for count in (1, 3, 8, 1):
            array = rows(count, start=count)
            outputs = await desk.infer(array)
            np.testing.assert_array_equal(values(outputs, 0), array + 1)
            np.testing.assert_array_equal(values(outputs, 1), array * 2)
        assert desk.worker.facts is not None
        assert desk.worker.facts.engine_version.startswith("torch ")
        assert desk.worker.stderr_tail == ""

    run(script_spec(tmp_path, model), body)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_torchscript_keeps_its_threads_to_a_core_each(tmp_path: Path) -> None:
    cores = available_cores()[-2:]

    spec = script_spec(tmp_path, "InTuple")
    dims = (1 << 17,)  # torch runs what is smaller in one thread
    wide = replace(
        spec.config,
        inputs=tuple(replace(tensor, dims=dims) for tensor in spec.config.inputs),
        outputs=tuple(replace(tensor, dims=dims) for tensor in spec.config.outputs),
    )

    async def body(desk: Desk) -> None:
        await desk.infer(np.ones((1, *dims), np.float32))
        assert {cores[:1], cores[1:]} <= affinities(desk.worker.pid)

    run(replace(spec, config=wide, partition=Partition("cpu", 2, cores, 100.0)), body)


def test_a_torchscript_model_that_fails(tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "InPlace")

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(1)))
        assert str(outcome).startswith("output 'second' is missing; the model returned 1 tensors")

    run(replace(spec, warmup=False), body)
    text = fails_to_start(spec)
    assert text.startswith("output 'second' is missing")
    strings = replace(spec.config, inputs=(TensorSpec("input", "BYTES", (4,)),))
    assert "no string tensors" in fails_to_start(replace(spec, config=strings))
    (spec.folder / "model.pt").write_bytes(b"garbage")
    reason = fails_to_start(spec)
    assert "/1 cannot be loaded: RuntimeError:" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("OneRow", "output 'second' has shape [1, 4], expected [2, 4] for a batch of 2"),
        ("Double", "output 'second' is float64, the config says FP32"),
    ],
)
def test_torchscript_outputs_that_are_not_what_the_config_says(tmp_path: Path, model: str, message: str) -> None:
    """They would go into shared memory without a word: libtorch repeats rows and converts types where it copies."""

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(2)))
        assert str(outcome) == message

    run(replace(script_spec(tmp_path, model), warmup=False), body)


def test_forty_lives_leave_nothing() -> None:
    """Eight at a time; half of them stop, half are killed."""

    async def life(number: int) -> None:
        desk = Desk(zoo_spec("slow", delay_ms="0"))
        await desk.worker.start(DEADLINE_S)
        await desk.infer(rows(1, start=number))
        if number % 2:
            desk.worker.kill()
            await desk.dead.wait()
        await desk.worker.stop(DEADLINE_S)

    async def whole() -> None:
        await life(0)
        before = open_descriptors()
        for start in range(0, 40, 8):
            await asyncio.gather(*[life(start + index) for index in range(8)])
        assert open_descriptors() == before

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


GATEWAY = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_worker import Desk, opened, request, rows, zoo_spec

async def main(name, fifo):
    desk = Desk(zoo_spec(name, started=fifo))
    start = asyncio.create_task(desk.worker.start(60))
    if name == "never_ready":
        await opened(Path(fifo))
    else:
        await start
    if name == "hangs_in_infer":
        desk.send(0, request(rows(1)))
        await opened(Path(fifo))
    print(desk.worker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[3:]))
"""


@pytest.mark.parametrize("name", ["never_ready", "hangs_in_infer", "wrong_rows"])
def test_no_worker_outlives_a_killed_gateway(tmp_path: Path, name: str) -> None:
    """Neither while it loads, nor with a batch in hand, nor while it is idle."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    here = Path(__file__).parent
    command = [sys.executable, "-c", GATEWAY, str(here), str(here.parent), name, str(fifo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        worker = os.pidfd_open(int(gateway.stdout.readline()))
        gateway.kill()
    assert select.select([worker], [], [], 10)[0] == [worker], "the worker lives on"
    os.close(worker)
