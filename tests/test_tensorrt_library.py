"""The calls of TensorRT on its stand-in: what is asked for, and what its errors become."""

from pathlib import Path

import pytest

import onnx_models
from efserve.engines.shape_ranges import ShapeRange
from efserve.engines.tensorrt_library import BuildTask, LoadedPlan, TensorRt
from efserve.errors import InferenceFailed, LoadFailed
from efserve.tensors import TensorSpec
from stand_ins import tensorrt

RANGES = (ShapeRange("a", (1, 4), (8, 4), (8, 4)), ShapeRange("b", (1, 4), (8, 4), (8, 4)))


class OldLibrary:
    """A TensorRT that is too old."""

    __version__ = "8.6.1"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return onnx_models.save(tmp_path, "m", onnx_models.add_sub()) / "model.onnx"


def test_a_plan_is_built_and_loaded(onnx_file: Path) -> None:
    library = TensorRt(tensorrt)
    told: list[str] = []
    built = library.build(BuildTask(onnx_file, RANGES, workspace_bytes=1 << 30), told.append)
    assert built.timings.startswith(b"timings of ")
    assert told[0].startswith("builds its TensorRT plan: Tactic Selection, step 1 of 2")
    plan = library.load(built.plan)
    assert plan is not None
    assert plan.inputs == (TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 4)))
    assert [spec.name for spec in plan.outputs] == ["sum", "difference"]
    assert plan.ranges == RANGES
    plan.set_shape("a", (3, 4))
    plan.set_shape("b", (3, 4))
    assert plan.shape("sum") == (3, 4)
    with pytest.raises(InferenceFailed, match=r"does not take input 'a' of shape \[9, 4\]: IExecution.* out of range"):
        plan.set_shape("a", (9, 4))
    plan.close()


class ContextOfTen:
    """`IExecutionContext` of TensorRT 10.0, where the memory is an attribute."""

    device_memory = 0


class EngineOfTen:
    """`ICudaEngine` of TensorRT 10.0, without tensors."""

    device_memory_size = 128
    num_io_tensors = 0

    def __init__(self) -> None:
        self.contexts: list[ContextOfTen] = []

    def create_execution_context(
        self, strategy: tensorrt.ExecutionContextAllocationStrategy = tensorrt.ExecutionContextAllocationStrategy.STATIC
    ) -> ContextOfTen:
        self.contexts.append(ContextOfTen())
        return self.contexts[-1]


def test_a_plan_runs_in_memory_that_it_is_given(onnx_file: Path) -> None:
    library = TensorRt(tensorrt)
    plan = library.load(library.build(BuildTask(onnx_file, RANGES), print).plan)
    assert plan is not None
    for each in (plan, plan.another()):
        with pytest.raises(OSError, match=r"could not start the run: IExecutionContext::enqueueV3: Error Code 3"):
            each.enqueue(0)
    assert plan.scratch_bytes == 4096
    engine = EngineOfTen()
    old = LoadedPlan(tensorrt, None, engine, library)
    assert old.scratch_bytes == 128
    other = old.another()
    old.set_scratch(7)
    other.set_scratch(8)
    assert [context.device_memory for context in engine.contexts] == [7, 8]


def test_timings_of_another_library_are_begun_anew(onnx_file: Path) -> None:
    library = TensorRt(tensorrt)
    built = library.build(BuildTask(onnx_file, RANGES, timings=b"garbage"), print)
    assert built.timings.startswith(b"timings of ")
    again = library.build(BuildTask(onnx_file, RANGES, timings=built.timings), print)
    assert again.timings == built.timings


def test_what_is_no_plan_is_told_in_the_librarys_words() -> None:
    library = TensorRt(tensorrt)
    assert library.said == "it does not say why"
    assert library.load(b"nonsense") is None
    assert library.said == "IRuntime::deserializeCudaEngine: Error Code 1: Serialization"


def test_a_library_that_is_too_old() -> None:
    with pytest.raises(LoadFailed, match=r"TensorRT 8.6.1 is too old; the tensorrt engine needs 10 or later"):
        TensorRt(OldLibrary)
