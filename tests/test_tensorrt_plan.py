"""Keys of plans, hashes of models, precisions, and what errors say."""

from dataclasses import replace
from pathlib import Path

import pytest

from efserve.engines.shape_ranges import ShapeRange
from efserve.engines.tensorrt_plan import Build, Machine, cannot_load, cannot_parse, files_sha256, precision_of
from efserve.errors import ConfigError
from efserve.model_config import ModelConfig

MACHINE = Machine("NVIDIA H200", "9.0", "10.13.0")
BUILD = Build(MACHINE, "fp16", "ab" * 32, (ShapeRange("x", (1, 3), (8, 3), (8, 3)),))


def test_everything_that_decides_the_plan_is_in_the_key() -> None:
    others = [
        replace(BUILD, machine=replace(MACHINE, gpu="NVIDIA A100")),
        replace(BUILD, machine=replace(MACHINE, compute_capability="8.0")),
        replace(BUILD, machine=replace(MACHINE, tensorrt="11.1.0")),
        replace(BUILD, precision="bf16"),
        replace(BUILD, onnx_sha256="cd" * 32),
        replace(BUILD, ranges=(ShapeRange("x", (1, 3), (4, 3), (8, 3)),)),
        replace(BUILD, ranges=()),
    ]
    keys = {build.key for build in (BUILD, *others)}
    assert len(keys) == 1 + len(others)
    assert all(len(key) == 16 and key.isalnum() for key in keys)
    assert replace(BUILD).key == BUILD.key


def test_precisions() -> None:
    assert precision_of(ModelConfig("m")) == "fp32"
    assert precision_of(ModelConfig("m", parameters={"precision": "bf16"})) == "bf16"
    with pytest.raises(ConfigError, match="parameter precision is 'fp8', expected one of fp32, fp16, bf16, int8"):
        precision_of(ModelConfig("m", parameters={"precision": "fp8"}))


def test_weights_beside_the_model_are_part_of_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    alone = files_sha256(path)
    for other in ("model.pt", "model.py", "old.plan", ".hidden", "notes.txt"):
        (tmp_path / other).write_bytes(b"anything")
    (tmp_path / ".cache").mkdir()
    assert files_sha256(path) == alone
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    with_weights = files_sha256(path)
    assert with_weights != alone
    (tmp_path / "model.onnx.data").write_bytes(b"others!")
    assert files_sha256(path) not in (alone, with_weights)


def test_a_plan_from_elsewhere() -> None:
    text = cannot_load(Path("model.plan"), MACHINE, "Error Code 1: Serialization")
    assert text == (
        "TensorRT cannot load model.plan: Error Code 1: Serialization. A plan runs only on the kind of GPU and with "
        "the version of TensorRT that built it; this is NVIDIA H200 (compute capability 9.0) with TensorRT 10.13.0. "
        "Build one here from the ONNX file: efserve serve --trt"
    )


def test_the_operator_that_does_not_parse() -> None:
    errors = [("NonZero", "/nz", "no\n importer"), ("Foo", "/foo", "neither")]
    assert cannot_parse(Path("model.onnx"), errors) == (
        "TensorRT cannot parse model.onnx: operator NonZero (node '/nz'): no importer; 1 more errors. "
        "Serve it with --engine onnx, or export it without that operator"
    )
    assert "operator" not in cannot_parse(Path("model.onnx"), [("", "", "bad file")]).partition("Serve")[0]
    assert "does not say why" in cannot_parse(Path("model.onnx"), [])
