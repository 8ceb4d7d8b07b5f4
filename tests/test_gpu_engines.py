"""Engines on a real GPU; skipped where there is none. What is tested here without one is tested with stand-ins."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from efserve.devices.gpu import gpus
from efserve.devices.nvml import nvml
from efserve.engines import base
from efserve.engines.base import Engine, Source
from efserve.engines.cuda_pins import Pins
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import Array, TensorSpec
from efserve.transport.arena import Area

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(nvml().count() == 0, reason=nvml().problem or "this machine has no GPU"),
]


def partition() -> Partition:
    return Partition(device=gpus()[0].uuid)


def in_arena(array: Array) -> Array:
    area = Area.create()
    area.reserve(array.nbytes)
    shared: Array = np.frombuffer(area.map, array.dtype, array.size).reshape(array.shape)
    shared[...] = array
    return shared


def runs_right(engine: Engine, source: Array, expected: Array, atol: float) -> None:
    """By `infer` and bound, again and again: the later runs are graphs."""
    shared, target = in_arena(source), in_arena(np.zeros_like(expected))
    run = engine.bind([shared], [target])
    for factor in (1, 2, 1, 3, 1):
        shared[...] = factor * source
        (found,) = engine.infer([shared])
        np.testing.assert_allclose(found, factor * expected, atol=factor * atol)  # type: ignore[arg-type]  # numpy
        if run is not None:
            run()
            np.testing.assert_allclose(target, factor * expected, atol=factor * atol)  # type: ignore[arg-type]  # numpy
    assert not [remark.text for remark in engine.remarks if remark.is_warning]
    engine.close()


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("fp16", 5e-2), ("bf16", 3e-1)])
def test_torchscript(tmp_path: Path, precision: str, atol: float) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    module = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False).eval()
    torch.jit.save(torch.jit.script(module), str(tmp_path / "model.pt"))
    config = ModelConfig(
        "m",
        "torchscript",
        8,
        (TensorSpec("x", "FP32", (3, 16, 16)),),
        (TensorSpec("y", "FP32", (8, 16, 16)),),
        parameters={"precision": precision},
    )
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    expected = module(torch.from_numpy(images)).detach().numpy()
    engine = base.load("torchscript", Source(tmp_path, config, partition()))
    runs_right(engine, images, expected, atol)


@pytest.mark.parametrize("engine", ["onnx", "tensorrt"])
def test_onnx_files(tmp_path: Path, engine: str) -> None:
    if engine == "tensorrt" and not (find_spec("tensorrt") and find_spec("pycuda")):
        pytest.skip("TensorRT is not installed")
    if engine == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA")
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    values = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    loaded = base.load(engine, Source(folder, ModelConfig("m"), partition(), strict_provider=True))
    runs_right(loaded, values, values, 0.0)


def test_the_driver_locks_the_arena() -> None:
    from efserve.engines.cuda_driver import load_driver

    pins = Pins(load_driver())
    assert pins.ensure([in_arena(np.zeros(1000, np.float32))]), pins.problem
    assert pins.locked_bytes >= 4000
    pins.release()
