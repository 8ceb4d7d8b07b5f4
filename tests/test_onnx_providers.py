"""Which providers are asked for and what came of it: the decisions on made-up sessions, the CPU's on a real one."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import onnx_models
from efserve.engines import base
from efserve.engines.base import Source
from efserve.engines.cuda_device import DriverDevice
from efserve.engines.onnx import OnnxEngine
from efserve.engines.onnx_providers import (
    CPU,
    CUDA,
    RECORD,
    TENSORRT,
    Assigned,
    assignment,
    check_taken,
    check_there,
    refuse_cpu,
    remark,
    wanted,
    with_options,
)
from efserve.engines.shape_ranges import ShapeRange
from efserve.errors import ConfigError, DeviceLost, LoadFailed
from efserve.libcuda import Libcuda
from efserve.model_config import FileSignature, ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from fake_cuda import HostDevice, StandInDriver

GPU = Partition(device="GPU-1", memory_limit_bytes=2**30)


@dataclass
class Node:
    """`onnxruntime.OrtEpAssignedNode`."""

    name: str
    domain: str
    op_type: str


@dataclass
class Part:
    """`onnxruntime.OrtEpAssignedSubgraph`."""

    ep_name: str
    nodes: list[Node] = field(default_factory=list)

    def get_nodes(self) -> list[Node]:
        return self.nodes


class Session:
    """The one method of `onnxruntime.InferenceSession` that tells who runs what."""

    def __init__(self, *parts: Part) -> None:
        self._parts = list(parts)

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self._parts


class OldSession:
    """A session of an onnxruntime that cannot tell."""


MIXED = Session(
    Part(CUDA, [Node("a", "", "Conv")]),
    Part(CUDA, [Node("b", "", "Relu")]),
    Part(CPU, [Node("c", "", "NonZero")]),
    Part(CPU, [Node("d", "com.microsoft", "Tokenizer")]),
    Part(CPU, [Node("e", "", "NonZero")]),
)


def test_what_is_wanted() -> None:
    assert wanted(Partition(), {"execution_provider": "tensorrt"}, "m") == (CPU,)
    assert wanted(GPU, {}, "m") == (CUDA, CPU)
    assert wanted(GPU, {"execution_provider": "tensorrt"}, "m") == (TENSORRT, CUDA, CPU)
    with pytest.raises(ConfigError, match=r"config of 'm': parameter execution_provider is 'rocm', expected one of"):
        wanted(GPU, {"execution_provider": "rocm"}, "m")


def test_options_of_the_providers() -> None:
    ranges = [ShapeRange("a", (1, 3), (8, 3), (16, 3)), ShapeRange("b", (1, 1), (8, 128), (16, 512))]
    tensorrt, cuda, cpu = with_options((TENSORRT, CUDA, CPU), GPU, ranges, "fp16", Path("here"))
    assert cpu == CPU
    assert isinstance(cuda, tuple)
    assert cuda[1]["gpu_mem_limit"] == str(2**30)
    assert isinstance(tensorrt, tuple)
    assert tensorrt[1]["trt_fp16_enable"] == "True"
    assert tensorrt[1]["trt_profile_min_shapes"] == "a:1x3,b:1x1"
    assert tensorrt[1]["trt_profile_opt_shapes"] == "a:8x3,b:8x128"
    assert tensorrt[1]["trt_profile_max_shapes"] == "a:16x3,b:16x512"
    assert with_options((CPU,), Partition(), (), "", Path()) == [CPU]
    assert "user_compute_stream" not in cuda[1]
    for each in with_options((TENSORRT, CUDA), GPU, ranges, "", Path("here"), stream=7):
        assert each[1]["user_compute_stream"] == "7"  # type: ignore[index]  # these two have options


def test_providers_that_are_not_there_or_do_not_start() -> None:
    check_there((CUDA, CPU), (CUDA, CPU), "1.30")
    check_taken((CUDA, CPU), (CUDA, CPU))
    with pytest.raises(LoadFailed, match=r"this onnxruntime 1.30 has no CUDAExecutionProvider, only CPU.*-gpu"):
        check_there((CUDA, CPU), (CPU,), "1.30")
    with pytest.raises(LoadFailed, match=r"could not start TensorrtExecutionProvider and took CUDAExecution"):
        check_taken((TENSORRT, CUDA, CPU), (CUDA, CPU))


def test_nodes_that_fall_back_are_told_and_refused() -> None:
    nodes = assignment(MIXED)
    told = remark(nodes, (CUDA, CPU), "1.30")
    assert told.is_warning
    assert told.text == (
        "CPUExecutionProvider runs 3 of 5 nodes (NonZero 2, com.microsoft:Tokenizer 1); "
        "CUDAExecutionProvider runs 2 of 5 nodes"
    )
    with pytest.raises(LoadFailed, match=r"3 of 5 nodes would run on the CPU, .*: NonZero 2, com.microsoft:Tok"):
        refuse_cpu(nodes, (CUDA, CPU))
    refuse_cpu(nodes, (CPU,))
    assert not remark(nodes, (CPU,), "1.30").is_warning


def test_many_operators_are_not_all_listed() -> None:
    nodes = [Assigned(CPU, f"Op{number}") for number in range(12)]
    with pytest.raises(LoadFailed, match=r"Op7 1 and 4 other operators;"):
        refuse_cpu(nodes, (CUDA, CPU))


def test_an_onnxruntime_that_cannot_tell() -> None:
    assert assignment(OldSession()) is None
    assert remark(None, (CPU,), "1.20").text.startswith("onnxruntime 1.20 does not tell")
    refuse_cpu(None, (CUDA, CPU))


def test_the_nodes_of_a_real_session(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.add_sub())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=[CPU])
    nodes = assignment(session)
    assert nodes is not None
    assert sorted(node.operator for node in nodes) == ["Add", "Sub"]
    assert {node.provider for node in nodes} == {CPU}


def test_an_engine_tells_who_runs_its_nodes(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.add_sub())
    engine = base.load("onnx", Source(folder, ModelConfig("m"), Partition(), strict_provider=True))
    assert [each.text for each in engine.remarks] == ["CPUExecutionProvider runs 2 of 2 nodes"]
    engine.close()


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_gpu_is_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.add_sub())
    with pytest.raises(LoadFailed, match=r"a GPU was asked for, but this onnxruntime .* has no CUDAExecutionProvider"):
        base.load("onnx", Source(folder, ModelConfig("m"), GPU))


def on_a_device(folder: Path, device: HostDevice) -> OnnxEngine:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=[CPU])
    specs = (TensorSpec("input", "FP32", (4,)),), (TensorSpec("output", "FP32", (4,)),)
    whole = FileSignature(*((TensorSpec(each.name, "FP32", (-1, 4)),) for (each,) in specs))
    return OnnxEngine(session, ModelConfig("m", "onnx", 4, *specs), whole, (), device)


def test_a_run_that_takes_the_gpu_with_it_is_told_apart(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    wrong = np.zeros((1, 5), np.float32)  # as if a kernel had failed
    for is_lost, expected in ((False, (InvalidArgument, RuntimeError)), (True, DeviceLost)):
        engine = on_a_device(folder, HostDevice(is_lost))
        (found,) = engine.infer([np.ones((2, 4), np.float32)])
        assert found.tolist() == [[1] * 4] * 2
        with pytest.raises(expected):
            engine.infer([wrong])
        run = engine.bind([wrong], [wrong])
        assert run is not None
        with pytest.raises(expected):
            run()


def test_bound_tensors_stay_on_the_device(tmp_path: Path) -> None:
    device = HostDevice()
    engine = on_a_device(onnx_models.save(tmp_path, "m", onnx_models.identity(4)), device)
    runs = {}
    for rows in (1, 2, 1):
        source, target = np.full((rows, 4), rows, np.float32), np.zeros((rows, 4), np.float32)
        run = engine.bind([source], [target])
        assert run is not None
        runs[rows] = (run, source, target)
    assert device.calls == ["allocate 16", "allocate 16", "allocate 32", "allocate 32"]  # two rows need new places
    for rows, (run, source, target) in runs.items():
        del device.calls[:]
        source[:] += 10
        run()
        assert device.calls == ["in", "mark 0", "mark 1", "out", "wait"]
        assert target.tolist() == [[rows + 10] * 4] * rows
        assert engine.device_ns == device.compute_ns
    engine.infer([np.ones((1, 4), np.float32)])
    assert engine.device_ns == 0  # of tensors that are not bound, copies are not told apart
    engine.close()
    assert device.calls[-1] == "close"


def test_the_device_by_its_driver() -> None:
    library = StandInDriver()
    device = DriverDevice(Libcuda(library))
    address, array = device.allocate(16), np.zeros(4, np.float32)
    device.mark(0)
    device.copy_in(address, array)
    device.mark(1)
    device.copy_out(array, address)
    assert device.wait() == 0
    device.synchronize()
    device.close()
    assert library.calls == [
        "cuInit",
        "cuStreamCreate",
        *["cuEventCreate"] * 2,
        "cuMemAlloc_v2",
        "cuEventRecord",
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
        "cuEventElapsedTime",
        "cuCtxSynchronize",
        "cuMemFree_v2",
        *["cuEventDestroy_v2"] * 2,
        "cuStreamDestroy_v2",
    ]
    with pytest.raises(OSError, match=r"cuMemAlloc_v2: operation not permitted .* \(error 900\)"):
        DriverDevice(Libcuda(StandInDriver(fails="cuMemAlloc_v2"))).allocate(16)
