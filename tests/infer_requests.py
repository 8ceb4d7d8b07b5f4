"""Inference requests as tests write them: heads as values, bodies, and what decoding one says."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from efserve.codec.v2_infer import decode
from efserve.errors import EfserveError
from efserve.model_config import ModelConfig
from efserve.tensors import TensorSpec
from fakes import FakeModel, identity_config

BINARY = {"parameters": {"binary_data_output": True}}


def two_inputs() -> ModelConfig:
    """A model with inputs A [2] INT32 and B [-1] BYTES, outputs X FP32 [3] and Y BYTES [1]."""
    return ModelConfig(
        name="pair",
        max_batch_size=4,
        inputs=(TensorSpec("A", "INT32", (2,)), TensorSpec("B", "BYTES", (-1,))),
        outputs=(TensorSpec("X", "FP32", (3,)), TensorSpec("Y", "BYTES", (1,))),
    )


def one_input(**changes: Any) -> dict[str, Any]:
    """The description of identity's input, [1,16] FP32 as binary."""
    return {
        "name": "input",
        "shape": [1, 16],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 64},
    } | changes


def body_of(head: Mapping[str, Any], tail: bytes = b"") -> tuple[memoryview, int]:
    text = json.dumps(head).encode()
    return memoryview(text + tail), len(text)


def error_of(model: FakeModel, head: Mapping[str, Any], tail: bytes = b"") -> str:
    with pytest.raises(EfserveError) as caught:
        decode(model, *body_of(head, tail))
    return str(caught.value)


def json_input(datatype: str, data: object, shape: tuple[int, ...] = (1, 2)) -> tuple[FakeModel, dict[str, Any]]:
    model = FakeModel(identity_config(datatype=datatype, dims=(-1,)))
    return model, {"inputs": [{"name": "input", "shape": list(shape), "datatype": datatype, "data": data}]} | BINARY
