"""The two halves of a batch's way, gateway and child, joined in one process; and a worker's life as a state machine."""

import asyncio
import os
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from efserve.engines.base import Remark
from efserve.errors import DeviceLost, InvalidRequest
from efserve.inference import BatchTiming, InferRequest, Outcome, Outputs, OutputTensor
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec, to_wire
from efserve.transport import messages
from efserve.transport.arena import Area
from efserve.worker.exchange import Exchange
from efserve.worker.execution import Executor
from efserve.worker.handle import Worker, WorkerSpec, WorkerState
from leaks import children, mapped_areas, open_areas

ZOO = Path(__file__).parent / "models"
MAX_BATCH = 8


@dataclass
class Echo:
    """An engine that answers with its inputs; where it `binds`, it writes them right into the outputs."""

    config: ModelConfig
    binds: bool = False
    version: str = "echo 1"
    warmup_runs: int = 1
    remarks: Sequence[Remark] = ()
    device_ns: int = 0
    runs: int = 0

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        self.runs += 1
        return [np.array(array) for array in inputs]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        def run() -> None:
            self.runs += 1
            for source, target in zip(inputs, outputs, strict=True):
                np.copyto(target, source)

        return run if self.binds else None

    def close(self) -> None:
        pass


class Pair:
    """Both halves of a worker with two slots, without a process between them."""

    def __init__(self, engine: Echo) -> None:
        inputs, outputs = [[Area.create(), Area.create()] for _ in range(2)]
        inputs_seen, outputs_seen = [[Area(os.dup(area.fileno())) for area in areas] for areas in (inputs, outputs)]
        self.exchange = Exchange(engine.config, inputs, outputs_seen)
        self.executor = Executor(engine, inputs_seen, outputs)
        self._areas = (*inputs, *outputs, *inputs_seen, *outputs_seen)

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        for area in self._areas:
            area.close()

    def infer(self, slot: int, requests: Sequence[InferRequest]) -> list[Outputs]:
        done = self.executor.run(self.exchange.write(slot, requests))
        assert done[0] == messages.DONE, messages.text_of(done)
        assert done[1] == slot
        return self.exchange.read(slot, requests, done)


def config_of(specs: Sequence[TensorSpec], max_batch: int = MAX_BATCH) -> ModelConfig:
    outputs = tuple(TensorSpec(f"{spec.name}_out", spec.datatype, spec.dims) for spec in specs)
    return ModelConfig("echo", "python", max_batch, tuple(specs), outputs)


def request(arrays: Sequence[npt.NDArray[Any]], rows: int) -> InferRequest:
    tensors = tuple(bytes(to_wire(array)) for array in arrays)
    return InferRequest(tensors, tuple(array.shape for array in arrays), rows, None, lambda _: None)


def random_array(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        array = np.empty(shape, np.object_)
        for index in np.ndindex(shape):
            array[index] = random.bytes(int(random.integers(0, 12)))
        return array
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    return np.frombuffer(random.bytes(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape)


def random_request(
    random: np.random.Generator, specs: Sequence[TensorSpec], dims: Sequence[tuple[int, ...]], rows: int
) -> InferRequest:
    shapes = [(rows, *fixed) for fixed in dims]
    return request([random_array(random, s.datatype, shape) for s, shape in zip(specs, shapes, strict=True)], rows)


class Elsewhere:
    """A row of FP32 in memory that is not ours, or is gone."""

    def __init__(self, data: bytes, gone: bool = False) -> None:
        self._data, self._gone = data, gone

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data

    def copy_to(self, target: memoryview) -> None:
        if self._gone:
            raise InvalidRequest("it is gone")
        target[:] = self._data


def test_a_tensor_that_is_gone_fails_its_own_request_alone() -> None:
    specs = [TensorSpec("x", "FP32", (2,))]
    rows = [np.full((1, 2), value, np.float32) for value in (1, 2, 3)]
    requests = [request([row], 1) for row in rows]
    requests[1].tensors = (Elsewhere(rows[1].tobytes(), gone=True),)
    requests[2].tensors = (Elsewhere(rows[2].tobytes()),)
    with Pair(Echo(config_of(specs))) as pair:
        for _ in range(2):  # new, and remembered
            done = pair.executor.run(pair.exchange.write(0, requests))
            first, gone, last = pair.exchange.outcomes(0, requests, done)
            assert [str(gone)] == ["it is gone"]
            assert [first, last] == [(OutputTensor((1, 2), row.tobytes()),) for row in (rows[0], rows[2])]
        pair.exchange.write(0, requests)  # a batch that is never answered
        done = pair.executor.run(pair.exchange.write(0, requests[:1]))
        assert pair.exchange.outcomes(0, requests[:1], done) == [first]


class Lost(Echo):
    """An engine whose device goes."""

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        raise DeviceLost("the GPU is lost")


def test_a_lost_device_ends_the_worker() -> None:
    with Pair(Lost(config_of([TensorSpec("x", "FP32", (2,))]))) as pair:
        run = pair.exchange.write(0, [request([np.zeros((1, 2), np.float32)], 1)])
        with pytest.raises(DeviceLost):
            pair.executor.run(run)


@pytest.mark.parametrize("binds", [False, True])
def test_the_time_on_the_device_comes_with_the_batch(binds: bool) -> None:
    specs = [TensorSpec("x", "FP32", (2,))]
    with Pair(Echo(config_of(specs), binds, device_ns=1234)) as pair:
        run = pair.exchange.write(0, [request([np.zeros((1, 2), np.float32)], 1)])
        timing = BatchTiming._make(messages.DONE_HEAD.unpack_from(pair.executor.run(run))[2:])
    assert timing.device_ns == 1234
    assert timing.start_ns <= timing.input_ns <= timing.infer_ns <= timing.output_ns


@settings(max_examples=60, deadline=None)
@given(
    datatypes=st.lists(st.sampled_from(sorted(NUMPY_DTYPES)), min_size=1, max_size=4),
    ranks=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    free=st.booleans(),
    binds=st.booleans(),
    batches=st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(1, 3), min_size=1, max_size=4)), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_every_request_gets_its_own_rows_back(
    datatypes: list[str],
    ranks: list[int],
    free: bool,
    binds: bool,
    batches: list[tuple[int, list[int]]],
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    dims = [tuple(int(d) for d in random.integers(1, 5, rank)) for rank in ranks[: len(datatypes)]]
    specs = [
        TensorSpec(f"x{index}", datatype, (-1,) * len(fixed) if free else fixed)
        for index, (datatype, fixed) in enumerate(zip(datatypes, dims, strict=True))
    ]
    with Pair(Echo(config_of(specs), binds)) as pair:
        for slot, row_counts in batches:
            if free:
                dims = [tuple(int(d) for d in random.integers(0, 5, len(fixed))) for fixed in dims]
            requests = [random_request(random, specs, dims, rows) for rows in row_counts]
            for outputs, asked in zip(pair.infer(slot, requests), requests, strict=True):
                assert tuple(output.shape for output in outputs) == asked.shapes
                assert tuple(output.data for output in outputs) == asked.tensors


def test_without_batching_shapes_are_taken_as_they_are() -> None:
    config = config_of([TensorSpec("x", "FP32", (2, -1)), TensorSpec("s", "INT64", ())], 0)
    with Pair(Echo(config, binds=True)) as pair:
        for columns in (3, 0, 5):
            arrays = [np.ones((2, columns), np.float32), np.array(7)]
            (outputs,) = pair.infer(1, [request(arrays, 1)])
            assert [output.shape for output in outputs] == [(2, columns), ()]


def test_a_batch_outgrows_its_area_while_earlier_ones_are_remembered() -> None:
    with Pair(Echo(config_of([TensorSpec("x", "FP32", (-1,))]))) as pair:
        for columns in (10, 1_000_000, 10, 3_000_000, 10):
            array = np.full((1, columns), columns, np.float32)
            assert pair.infer(0, [request([array], 1)])[0][0].data == array.tobytes()


def test_many_different_shapes_do_not_gather() -> None:
    with Pair(Echo(config_of([TensorSpec("x", "UINT8", (-1,))]))) as pair:

        def infer_lengths(lengths: range) -> int:
            for columns in lengths:
                array = np.full((1, columns), columns % 256, np.uint8)
                assert pair.infer(0, [request([array], 1)])[0][0].data == array.tobytes()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        before = infer_lengths(range(1, 4200))
        after = infer_lengths(range(4200, 8400))
        tracemalloc.stop()
    assert after - before < 500_000


@pytest.mark.parametrize("binds", [False, True])
def test_warm_up_runs_every_batch_size_on_zeros(binds: bool) -> None:
    engine = Echo(config_of([TensorSpec("x", "FP32", (3,)), TensorSpec("t", "INT8", (2,))], 6), binds)
    with Pair(engine) as pair:
        pair.executor.warm_up()
    assert engine.runs == 4  # 1, 2, 4, 6
    strings = Echo(config_of([TensorSpec("t", "BYTES", (-1, 2))], 1), binds)
    with Pair(strings) as pair:
        pair.executor.warm_up()
    assert strings.runs == 1


class Picky(Echo):
    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        raise ValueError(f"too small: {inputs[0].shape}")


def test_a_warm_up_may_fail_only_where_contents_are_guessed() -> None:
    with Pair(Picky(config_of([TensorSpec("number as text", "BYTES", (1,))]))) as pair:
        pair.executor.warm_up()
    with Pair(Picky(config_of([TensorSpec("x", "FP32", (-1,))]))) as pair:
        pair.executor.warm_up()
    with Pair(Picky(config_of([TensorSpec("x", "FP32", (3,))]))) as pair, pytest.raises(ValueError, match="too small"):
        pair.executor.warm_up()


class Wrong(Echo):
    """Answers with another dtype."""

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        return [array.astype(np.float64) for array in inputs]


def test_outputs_of_the_wrong_type_are_refused() -> None:
    with Pair(Wrong(config_of([TensorSpec("x", "FP32", (3,))]))) as pair:
        answer = pair.executor.run(pair.exchange.write(1, [request([np.zeros((1, 3), np.float32)], 1)]))
    assert answer == messages.error(1, "output 'x_out' is float64, the config says FP32")


SPEC = (TensorSpec("input", "FP32", (4,)),), (TensorSpec("output", "FP32", (4,)),)


class Life(RuleBasedStateMachine):
    """A real worker that is started, fed, killed and stopped in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.deaths: list[str] = []
        self.waiting: dict[int, asyncio.Future[list[Outcome]]] = {}
        self.sent: dict[int, InferRequest] = {}
        config = ModelConfig("echo", "python", 4, *SPEC, parameters={"delay_ms": "1"})
        spec = WorkerSpec(config, "1", ZOO / "slow" / "1", "python", Partition(), 4)
        self.worker = Worker(spec, on_done=self.done, on_death=self.died)
        self.dead = asyncio.Event()
        self.killed = False
        self.before = (mapped_areas(), open_areas(), children())  # what other tests have left to the garbage collector

    def done(self, worker: Worker, slot: int, outcomes: list[Outcome], timing: BatchTiming | None) -> None:
        assert timing is not None
        self.waiting.pop(slot).set_result(outcomes)

    def died(self, worker: Worker, reason: str) -> None:
        assert worker.state is WorkerState.DEAD
        self.deaths.append(reason)
        self.dead.set()

    @precondition(lambda self: self.worker.state is WorkerState.NEW)
    @rule()
    def start(self) -> None:
        facts = self.runner.run(self.worker.start(30))
        assert facts.pid == self.worker.pid

    @precondition(lambda self: self.worker.state is WorkerState.READY and len(self.waiting) < 2)
    @rule(rows=st.integers(1, 4), value=st.integers(0, 100))
    def send(self, rows: int, value: int) -> None:
        slot = min({0, 1} - set(self.waiting))

        async def step() -> None:
            self.waiting[slot] = asyncio.get_running_loop().create_future()
            self.sent[slot] = request([np.full((rows, 4), value, np.float32)], rows)
            self.worker.send(slot, (self.sent[slot],))

        self.runner.run(step())

    @precondition(lambda self: self.waiting and not self.killed)
    @rule()
    def wait(self) -> None:
        slot, future = min(self.waiting.items())

        async def step() -> list[Outcome]:
            return await asyncio.wait_for(future, 10)

        (outputs,) = self.runner.run(step())
        assert isinstance(outputs, tuple)
        assert outputs[0].data == self.sent[slot].tensors[0]

    @precondition(lambda self: self.worker.state is WorkerState.READY)
    @rule()
    def kill(self) -> None:
        async def step() -> None:
            self.worker.kill()
            self.worker.kill()
            await asyncio.wait_for(self.dead.wait(), 10)

        self.killed = True
        self.runner.run(step())
        self.waiting.clear()

    @rule()
    def stop(self) -> None:
        self.runner.run(self.worker.stop(10))
        assert self.worker.state is WorkerState.DEAD
        assert not self.waiting
        self.waiting.clear()

    @invariant()
    def deaths_are_told_once(self) -> None:
        assert self.deaths == (["killed by SIGKILL"] if self.killed else [])
        if self.worker.state is WorkerState.DEAD:
            assert self.worker.rss_bytes() == 0

    def teardown(self) -> None:
        self.runner.run(self.worker.stop(10))
        self.runner.close()
        assert mapped_areas() <= self.before[0]
        assert open_areas() <= self.before[1]
        assert children() <= self.before[2]


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
