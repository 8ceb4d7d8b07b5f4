"""Engines in this process: what they read from files, what they refuse, and the Python model's contract."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnx_models
from efserve.engines import base
from efserve.engines.base import Source
from efserve.errors import ConfigError, InferenceFailed, LoadFailed
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from engine_identity import check_identity

ZOO = Path(__file__).parent / "models"


def source(folder: Path, config: ModelConfig | None = None, **changes: Any) -> Source:
    return Source(folder, config or ModelConfig(folder.parent.name), Partition(), **changes)


@pytest.mark.parametrize(
    ("element_type", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.UINT16, "UINT16"),
        (TensorProto.UINT32, "UINT32"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.DOUBLE, "FP64"),
    ],
)
def test_every_onnx_type_both_bound_and_not(tmp_path: Path, element_type: int, datatype: str) -> None:
    check_identity(
        base.load("onnx", source(onnx_models.save(tmp_path, "m", onnx_models.identity(4, element_type)))), datatype
    )


def test_what_cannot_be_bound(tmp_path: Path) -> None:
    strings = base.load("onnx", source(onnx_models.save(tmp_path, "s", onnx_models.string_identity())))
    text = np.full((1, 2), b"", np.object_)
    assert strings.bind([text], [text]) is None
    free = base.load("onnx", source(onnx_models.save(tmp_path, "d", onnx_models.dynamic())))
    assert free.bind([np.zeros((1, 2), np.float32)], [np.zeros((1, 2), np.float32)] * 2) is None
    empty = np.zeros((0, 4), np.float32)
    identity = base.load("onnx", source(onnx_models.save(tmp_path, "i", onnx_models.identity(4))))
    assert identity.bind([empty], [empty]) is None


def test_a_type_that_the_protocol_does_not_know(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["input"], ["output"])
    output = helper.make_tensor_sequence_value_info("output", TensorProto.FLOAT, None)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])]
    graph = helper.make_graph([node], "graph", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder = onnx_models.save(tmp_path, "m", model.SerializeToString())
    with pytest.raises(LoadFailed, match=r"output 'output' is a seq\(tensor\(float\)\), for which"):
        base.load("onnx", source(folder))


def test_a_config_that_contradicts_the_file(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    specs = (TensorSpec("input", "FP32", (5,)),), (TensorSpec("output", "FP32", (4,)),)
    with pytest.raises(ConfigError, match=r"tensor 'input': the model expects .* complete shape \[-1,5\]"):
        base.load("onnx", source(folder, ModelConfig("m", "onnx", 4, *specs)))


def test_another_file_name(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    (folder / "model.onnx").rename(folder / "net.onnx")
    base.load("onnx", source(folder, ModelConfig("m", default_model_filename="net.onnx"))).close()
    with pytest.raises(LoadFailed, match=r"there is no file model.onnx in .*; files there: net.onnx"):
        base.load("onnx", source(folder))


def test_a_file_that_the_config_names_for_another_engine_is_not_taken(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    for name in ("net.pt", "model.plan"):
        (folder / name).write_bytes(b"of another engine")
        base.load("onnx", source(folder, ModelConfig("m", default_model_filename=name))).close()
    named = source(folder, ModelConfig("m", default_model_filename="model.plan"))
    assert named.file("model.onnx", ".plan").name == "model.plan"
    (folder / "net.bin").touch()
    assert source(folder, ModelConfig("m", default_model_filename="net.bin")).file("model.pt").name == "net.bin"


def test_the_maximum_batch_is_completed_or_forced(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    assert base.load("onnx", source(folder, max_batch=16)).config.max_batch_size == 16
    assert base.load("onnx", source(folder, max_batch=16, force_max_batch=2)).config.max_batch_size == 2
    fixed = onnx_models.save(tmp_path, "fixed", onnx_models.without_batch())
    assert base.load("onnx", source(fixed, force_max_batch=2)).config.max_batch_size == 0


def python_model(folder: Path, text: str, closed: Path | None = None) -> base.Engine:
    (folder / "model.py").write_text(text)
    config = ModelConfig("m", "python", 4, (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),))
    return base.load("python", source(folder, config))


@pytest.mark.parametrize(
    ("answer", "says"),
    [("{'z': 1}", r"output 'y' is missing; .* returned \['z'\]"), ("[1]", "returned list, expected a dict")],
)
def test_a_python_model_that_answers_nonsense(tmp_path: Path, answer: str, says: str) -> None:
    text = f"class Model:\n def __init__(self, config, folder): pass\n def infer(self, inputs): return {answer}\n"
    with pytest.raises(InferenceFailed, match=says):
        python_model(tmp_path, text).infer([np.zeros((1, 2), np.float32)])


def test_a_python_model_knows_its_config_and_folder_and_is_closed(tmp_path: Path) -> None:
    text = (
        "class Model:\n"
        " def __init__(self, config, folder): self.config, self.folder = config, folder\n"
        " def infer(self, inputs): return {'y': inputs['x'] * self.config.max_batch_size}\n"
        " def close(self): (self.folder / 'closed').touch()\n"
    )
    engine = python_model(tmp_path, text)
    (output,) = engine.infer([np.ones((1, 2), np.float32)])
    assert output.tolist() == [[4, 4]]
    engine.close()
    assert (tmp_path / "closed").exists()


def test_a_python_model_needs_a_whole_config() -> None:
    with pytest.raises(ConfigError, match=r"config.pbtxt must list"):
        base.load("python", source(ZOO / "echo" / "1"))


def test_a_missing_library_is_one_sentence(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from efserve.partition import Partition; from efserve.model_config import ModelConfig\n"
        "from efserve.engines import base; from efserve.errors import LoadFailed\n"
        "try: base.load('torchscript', base.Source(Path(), ModelConfig('m'), Partition()))\n"
        "except LoadFailed as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "engine 'torchscript' needs torch, which is not installed: pip install 'efserve[torch]'\n"


def test_the_worker_imports_only_what_it_needs() -> None:
    script = (
        "import sys, efserve.worker.child\n"
        "unwanted = {'asyncio', 'email', 'onnx', 'onnxruntime', 'torch', 'tritonclient', 'google', 'uvloop', 'click'}\n"
        "print(sorted(unwanted & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
