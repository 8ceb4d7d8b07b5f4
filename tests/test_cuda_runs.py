"""Batches on a made-up device: the order of what is enqueued, places in memory, when graphs are captured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.engines.cuda_runs import ALIGNMENT_BYTES, CudaRuns, check_datatypes, places
from efserve.engines.shape_ranges import ShapeRange
from efserve.errors import DeviceLost, InferenceFailed, LoadFailed
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec

BASE = 1 << 20
SCRATCH = 1 << 30


@dataclass
class MemoryDevice:
    """A GPU whose memory is a bytearray; notes what is enqueued."""

    stream: int = 7
    capture_fails: str = ""
    lost: bool = False
    memory: bytearray = field(default_factory=bytearray)
    calls: list[str] = field(default_factory=list)
    is_capturing: bool = False

    def allocate(self, size_bytes: int) -> int:
        if self.memory:
            return SCRATCH
        self.memory = bytearray(size_bytes)
        return BASE

    def copy_in(self, address: int, source: Array) -> None:
        self.calls.append("in")
        self.memory[address - BASE : address - BASE + source.nbytes] = source.tobytes()

    def copy_out(self, target: Array, address: int) -> None:
        self.calls.append("out")
        data = bytes(self.memory[address - BASE : address - BASE + target.nbytes])
        np.copyto(target, np.frombuffer(data, target.dtype).reshape(target.shape))

    def locked(self, shape: Shape, datatype: str) -> Array:
        return np.empty(shape, NUMPY_DTYPES[datatype])

    def mark(self, number: int) -> None:
        self.calls.append(f"mark{number}")

    def wait(self) -> int:
        self.calls.append("wait")
        return 1500

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.capture_fails:
            raise OSError(self.capture_fails)
        self.calls.append("capture")
        before = len(self.calls)
        self.is_capturing = True
        work()
        self.is_capturing = False
        del self.calls[before:]  # captured, not run

        def launch() -> None:
            self.calls.append("launch")
            work()
            self.calls.pop()

        return launch

    def close(self) -> None:
        pass


@dataclass
class Doubling:
    """A program whose output is twice its input `x` [batch, length]; `grows` makes its size depend on values."""

    device: MemoryDevice
    grows: bool = False
    fails: bool = False
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, -1)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, -1)),)
    ranges: tuple[ShapeRange, ...] = (ShapeRange("x", (1, 2), (4, 4), (8, 16)),)
    scratch_bytes: int = 64
    scratch: int = 0
    others: list["Doubling"] = field(default_factory=list)
    is_closed: bool = False
    has_run: bool = False  # since its shape was set
    is_captured: bool = False
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    settings: int = 0

    def another(self) -> "Doubling":
        self.others.append(Doubling(self.device))
        return self.others[-1]

    def set_scratch(self, address: int) -> None:
        self.scratch = address

    def close(self) -> None:
        self.is_closed = True

    def set_shape(self, name: str, shape: Shape) -> None:
        assert not self.is_captured  # it would spoil the graph
        self.has_run = False
        self.shapes[name] = shape
        self.settings += 1

    def shape(self, name: str) -> Shape:
        return (*self.shapes["x"][:1], -1) if self.grows else self.shapes["x"]

    def set_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def enqueue(self, stream: int) -> None:
        assert stream == self.device.stream
        if self.fails:
            raise OSError("TensorRT could not start the run: out of memory")
        assert self.scratch == SCRATCH
        assert self.has_run or not self.device.is_capturing  # what a new shape leaves to do is no part of a graph
        self.has_run = True
        self.is_captured |= self.device.is_capturing
        self.device.calls.append("run")
        source, target = (self.addresses[name] - BASE for name in ("x", "y"))
        memory = np.frombuffer(self.device.memory, np.float32)
        memory[target // 4 : target // 4 + 128] = 2 * memory[source // 4 : source // 4 + 128]


def runs_of(**changes: object) -> tuple[CudaRuns, MemoryDevice, Doubling]:
    device = MemoryDevice(capture_fails=str(changes.pop("capture_fails", "")))
    program = Doubling(device, **changes)  # type: ignore[arg-type]  # of a test
    runs = CudaRuns(device, program, ("x",), ("y",))
    runs.prepare()
    device.calls.clear()
    return runs, device, program


def batch(rows: int, length: int = 4) -> Array:
    return np.arange(rows * length, dtype=np.float32).reshape(rows, length)


def test_a_run_copies_in_runs_and_copies_out_between_the_marks() -> None:
    runs, device, _ = runs_of()
    (output,) = runs.infer([batch(3)])
    np.testing.assert_array_equal(output, 2 * batch(3))
    assert device.calls == ["in", "mark0", "run", "mark1", "out", "wait"]
    assert runs.device_ns == 1500


def test_the_second_run_of_a_size_becomes_a_graph() -> None:
    runs, device, program = runs_of()
    for rows in (3, 3, 3, 5):
        device.calls.clear()
        (output,) = runs.infer([batch(rows)])
        np.testing.assert_array_equal(output, 2 * batch(rows))
        if rows == 5:
            assert device.calls == ["in", "mark0", "run", "mark1", "out", "wait"]
    settings = program.settings
    device.calls.clear()
    runs.infer([batch(3)])
    assert device.calls == ["in", "mark0", "launch", "mark1", "out", "wait"]
    assert program.settings == settings  # a graph needs no shapes
    assert [remark.text for remark in runs.remarks()] == ["1 combinations of input shapes run as CUDA graphs"]


def test_each_graph_has_an_instance_that_nobody_else_changes() -> None:
    runs, _, program = runs_of()
    for rows in (3, 5, 3, 5, 4, 3, 5, 4):
        (output,) = runs.infer([batch(rows)])
        np.testing.assert_array_equal(output, 2 * batch(rows))
    assert [each.shapes["x"][0] for each in program.others] == [3, 5, 4]
    assert [(each.is_captured, each.scratch) for each in program.others] == [(True, SCRATCH)] * 3
    assert not program.is_captured
    runs.close()
    assert all(each.is_closed for each in program.others)
    assert not program.is_closed  # its owner's


def test_a_size_after_a_graph_of_another_sets_its_shapes() -> None:
    runs, _, program = runs_of()
    for rows in (3, 3, 5, 3, 5, 3, 5, 6):
        (output,) = runs.infer([batch(rows)])
        np.testing.assert_array_equal(output, 2 * batch(rows))
    assert program.shapes["x"] == (6, 4)


def test_what_cannot_be_captured_runs_as_it_is_and_is_told_once() -> None:
    runs, device, _ = runs_of(capture_fails="cuStreamEndCapture: operation not permitted")
    for _ in range(4):
        (output,) = runs.infer([batch(2)])
        np.testing.assert_array_equal(output, 2 * batch(2))
    assert "launch" not in device.calls
    (remark,) = runs.remarks()
    assert remark.is_warning
    assert remark.text == "runs without CUDA graphs: cuStreamEndCapture: operation not permitted"


def test_a_bound_run_reads_and_writes_the_same_arrays_again() -> None:
    runs, _, _ = runs_of()
    source, target = batch(4).copy(), np.zeros((4, 4), np.float32)
    run = runs.bind([source], [target])
    assert run is not None
    for factor in (1, 2, 3):
        source[:] = factor * batch(4)
        run()
        np.testing.assert_array_equal(target, 2 * factor * batch(4))
    assert runs.bind([source], [np.zeros((4, 5), np.float32)]) is None


def test_a_shape_outside_the_range_is_refused() -> None:
    runs, _, _ = runs_of()
    with pytest.raises(InferenceFailed, match=r"input 'x' has shape \[9, 4\], the plan takes \[1, 2\] to \[8, 16\]"):
        runs.infer([batch(9)])


def test_an_output_whose_size_depends_on_values_is_refused() -> None:
    device = MemoryDevice()
    with pytest.raises(LoadFailed, match=r"size of output 'y' depends on the values of the inputs \(shape \[8, -1\]\)"):
        CudaRuns(device, Doubling(device, grows=True), ("x",), ("y",)).prepare()


def test_a_run_that_does_not_start() -> None:
    runs, _, program = runs_of()
    program.fails = True
    with pytest.raises(InferenceFailed, match="could not start the run: out of memory"):
        runs.infer([batch(2)])
    program.fails = False
    runs.infer([batch(2)])


def test_a_run_that_loses_the_device() -> None:
    runs, device, program = runs_of()
    run = runs.bind([batch(2)], [batch(2)])
    assert run is not None
    program.fails = device.lost = True
    with pytest.raises(DeviceLost, match=r"the GPU is lost to this worker: .*out of memory; then: an illegal memory"):
        run()


def test_strings_have_no_place() -> None:
    check_datatypes(["FP32", "BF16", "BOOL"])
    with pytest.raises(LoadFailed, match="a GPU has no strings"):
        check_datatypes(["FP32", "BYTES"])


@given(st.lists(st.tuples(st.sampled_from(["FP32", "INT64", "BOOL"]), st.lists(st.integers(0, 50), max_size=3))))
def test_places_are_aligned_and_do_not_overlap(tensors: Sequence[tuple[str, list[int]]]) -> None:
    largest = {str(index): (datatype, tuple(shape)) for index, (datatype, shape) in enumerate(tensors)}
    found, total_bytes = places(largest)
    end = 0
    for place in found.values():
        assert place.offset % ALIGNMENT_BYTES == 0
        assert place.offset >= end
        end = place.offset + place.size_bytes
    assert total_bytes >= end
