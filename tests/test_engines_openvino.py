"""The openvino engine in this process: what it reads from files, its precision, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import onnx_models
from efserve.engines import base
from efserve.engines.base import Source
from efserve.errors import ConfigError, LoadFailed
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from engine_identity import check_identity


def load(folder: Path, config: ModelConfig | None = None, **changes: Any) -> base.Engine:
    return base.load("openvino", Source(folder, config or ModelConfig("m"), Partition(), **changes))


def run_python(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=60)


@pytest.mark.parametrize(
    ("element_type", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.DOUBLE, "FP64"),
    ],
)
def test_every_type_both_bound_and_not(tmp_path: Path, element_type: int, datatype: str) -> None:
    check_identity(load(onnx_models.save(tmp_path, "m", onnx_models.identity(4, element_type))), datatype)


def test_batches_of_every_size_in_turn(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    engine, other = load(folder), base.load("onnx", Source(folder, ModelConfig("m"), Partition()))
    random = np.random.default_rng(0)
    runs = []
    for rows in (1, 3, 8):
        array, target = random.standard_normal((rows, 1, 28, 28)).astype(np.float32), np.zeros((rows, 10), np.float32)
        bound = engine.bind([array], [target])
        assert bound is not None
        runs.append((bound, array, target))
    for bound, array, target in runs * 2:
        target[:] = 0
        bound()
        assert np.allclose(target, np.asarray(other.infer([array])[0], np.float32), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(engine.infer([array])[0], target)


def test_outputs_in_the_order_of_the_config(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.add_sub())
    a, b, total, difference = (TensorSpec(name, "FP32", (4,)) for name in ("a", "b", "sum", "difference"))
    engine = load(folder, ModelConfig("m", "openvino", 8, (b, a), (difference, total)))
    arrays = [np.full((2, 4), value, np.float32) for value in (1, 5)]  # b, a
    assert [output[0, 0] for output in engine.infer(arrays)] == [4, 6]


def test_free_shapes_are_not_bound(tmp_path: Path) -> None:
    engine = load(onnx_models.save(tmp_path, "m", onnx_models.dynamic()))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    twice, first = engine.infer([array])
    np.testing.assert_array_equal(twice, array * 2)
    np.testing.assert_array_equal(first, array[:, :1])
    assert engine.bind([array], [twice, first]) is None


def test_bf16_is_what_the_config_says(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    array = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)
    exact, half = load(folder), load(folder, ModelConfig("m", parameters={"precision": "bf16"}))
    assert [remark.text for remark in exact.remarks] == ["computes in fp32"]
    (remark,) = half.remarks
    has_bf16 = remark.text == "computes in bf16"
    assert has_bf16 or remark.is_warning
    expected, found = exact.infer([array])[0], half.infer([array])[0]
    assert np.array_equal(expected, found) is not has_bf16
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=0.03 * float(np.abs(expected).max()))


def test_what_it_refuses(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity())
    with pytest.raises(
        ConfigError, match=r"parameter precision is 'fp8'; engine openvino knows fp32, bf16, fp16, int8"
    ):
        load(folder, ModelConfig("m", parameters={"precision": "fp8"}))
    with pytest.raises(LoadFailed, match="runs on the CPU only"):
        base.load("openvino", Source(folder, ModelConfig("m"), Partition(device="GPU-1")))
    strings = onnx_models.save(tmp_path, "s", onnx_models.string_identity())
    with pytest.raises(LoadFailed, match="does not take; use --engine onnx"):
        load(strings)


def test_signals_arrive_after_two_models(tmp_path: Path) -> None:
    script = (
        "import faulthandler, signal; from pathlib import Path; faulthandler.enable()\n"
        "from efserve.engines import base; from efserve.model_config import ModelConfig; "
        "from efserve.partition import Partition\n"
        "source = base.Source(Path('m/1'), ModelConfig('m'), Partition())\n"
        "first = base.load('openvino', source); second = base.load('openvino', source)\n"
        "del first; del second\n"
        "signal.signal(signal.SIGINT, lambda *_: print('arrived'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    onnx_models.save(tmp_path, "m", onnx_models.identity())
    ended = run_python(script, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "arrived\n"), ended.stderr


def test_without_the_package(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['openvino'] = None\n"
        "from efserve.cli import main\n"
        "main(['infer', 'm', 'x.npy', '--engine', 'openvino', '--model-repository', '.'])\n"
    )
    onnx_models.save(tmp_path, "m", onnx_models.identity())
    ended = run_python(script, tmp_path)
    assert ended.returncode == 1
    assert "engine 'openvino' needs openvino, which is not installed: pip install 'efserve[openvino]'" in ended.stderr
    assert "Traceback" not in ended.stderr
