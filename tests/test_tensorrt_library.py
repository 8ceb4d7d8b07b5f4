"""The calls of TensorRT on its stand-in: what is asked for, and what its errors become."""

from pathlib import Path

import pytest

import onnx_models
from efserve.engines.shape_ranges import ShapeRange
from efserve.engines.tensorrt_library import BuildTask, TensorRt
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
