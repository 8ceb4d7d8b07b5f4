"""What tensors an ONNX file has, without loading it into an engine."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from efserve.errors import LoadFailed
from efserve.model_config import FileSignature
from efserve.tensors import TensorSpec

_DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}


def read_signature(path: Path) -> FileSignature:
    """Inputs and outputs of the graph, -1 for sizes that the file leaves open; LoadFailed for other kinds of values."""
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return FileSignature(tuple(_specs(inputs, "input")), tuple(_specs(graph.output, "output")))


def _specs(values: "list[onnx.ValueInfoProto]", kind: str) -> Iterator[TensorSpec]:
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type not in _DATATYPES:
            raise LoadFailed(f"{kind} '{value.name}' is no tensor of a type for which the v2 protocol has a datatype")
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        yield TensorSpec(value.name, _DATATYPES[tensor.elem_type], dims)
