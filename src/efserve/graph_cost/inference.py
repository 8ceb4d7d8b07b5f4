"""What one node makes of its inputs, before it runs: types and shapes, and values where they are small.

A standard operator is asked of onnx. One of onnxruntime's own has the shapes of the standard one that it stands for, or
of its first input; of any other operator nothing is known.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from efserve.errors import Unsupported
from efserve.foreign import foreign
from efserve.graph_cost.graph import KNOWN_VALUES, RANDOM, STANDARD, Op, Tensor
from efserve.tensors import Array, Shape

Opsets = Iterable[onnx.OperatorSetIdProto]

# onnxruntime's own -> the standard operator with the same shapes, and which inputs of the first are those of the second
_STANDS_FOR = {
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "FusedMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
}
_LIKE_FIRST = frozenset({
    "BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "GroupQueryAttention", "MultiHeadAttention", "QLinearLeakyRelu",
    "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
_OUTPUT_TYPES = {
    "QuantizeLinear": onnx.TensorProto.UINT8,
    "DequantizeLinear": onnx.TensorProto.FLOAT,
    "MatMulIntegerToFloat": onnx.TensorProto.FLOAT,
}  # of onnxruntime's own, where it is not that of the first input
_PAST_KEY = {
    "MultiHeadAttention": 6,
    "GroupQueryAttention": 3,
}  # input with the keys of earlier tokens; then the values
_NOT_EVALUATED = frozenset({"QuantizeLinear", "DequantizeLinear"}) | RANDOM  # no shape depends on them


def inferred_outputs(op: Op, opsets: Opsets) -> dict[str, Tensor]:
    """The outputs of a node by name; those of which nothing is known are not there."""
    if any(tensor.shape is None for tensor in op.given):
        return {}
    if op.node.domain in STANDARD:
        return _ask_onnx(op.node, op.inputs, opsets)
    shape = _own_shape(op, opsets)
    if shape is None:
        return {}
    first = op.given[0]
    element_type = _OUTPUT_TYPES.get(op.kind, first.element_type)
    names = [name for name in op.node.output if name]
    found = {name: Tensor(name, element_type, shape, name) for name in names}
    for at, name in enumerate(op.node.output[1:3]):
        if op.kind in _PAST_KEY and name:
            found[name] = Tensor(name, element_type, _grown_past(op, _PAST_KEY[op.kind] + at), name)
    return found


def _ask_onnx(node: onnx.NodeProto, inputs: Sequence[Tensor | None], opsets: Opsets) -> dict[str, Tensor]:
    version = next((opset.version for opset in opsets if opset.domain in STANDARD), defs.onnx_opset_version())
    given = {name: tensor for name, tensor in zip(node.input, inputs, strict=False) if tensor is not None}
    types = {name: helper.make_tensor_type_proto(t.element_type, t.shape) for name, t in given.items()}
    values = {name: numpy_helper.from_array(t.value, name) for name, t in given.items() if t.value is not None}
    try:
        with foreign(f"nothing is known of {node.op_type}", Unsupported):
            schema = defs.get_schema(node.op_type, version, "")
            imports = [helper.make_opsetid("", version)]
            found = shape_inference.infer_node_outputs(schema, node, types, values, opset_imports=imports)
    except Unsupported:  # an operator that onnx does not know, or inputs that it does not take
        return {}
    return {name: _tensor(name, kind.tensor_type) for name, kind in found.items() if kind.HasField("tensor_type")}


def _tensor(name: str, kind: onnx.TypeProto.Tensor) -> Tensor:
    known = kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    return Tensor(name, kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim) if known else None, name)


def _own_shape(op: Op, opsets: Opsets) -> Shape | None:
    """Shape of the first output of one of onnxruntime's own operators."""
    first = op.given[0].dims if op.given else ()
    if op.kind in _STANDS_FOR:
        kind, positions = _STANDS_FOR[op.kind]
        inputs = [op.inputs[at] for at in positions]
        known = defs.get_schema(kind).attributes
        node = onnx.NodeProto(op_type=kind, input=[op.node.input[at] for at in positions], output=["y"])
        node.attribute.extend(attribute for attribute in op.node.attribute if attribute.name in known)
        as_floats = [t and Tensor(t.name, onnx.TensorProto.FLOAT, t.shape, t.name) for t in inputs]
        made = _ask_onnx(node, as_floats, opsets).get("y")
        return made.shape if made else None
    if op.kind == "MatMulNBits":
        return (*first[:-1], int(op.attributes["N"]))
    if op.kind == "Attention" and len(op.given) > 1:
        return (*first[:-1], op.given[1].dims[-1] // 3)
    return first if op.kind in _LIKE_FIRST and first else None


def _grown_past(op: Op, at: int) -> Shape | None:
    """Shape of keys or values [batch, heads, tokens, size] with those of this run behind the earlier ones."""
    past = op.inputs[at] if at < len(op.inputs) else None
    if past is None or len(past.dims) != 4:
        return None
    batch, heads, tokens, size = past.dims
    return batch, heads, tokens + op.given[0].dims[1], size


def known_values(op: Op, outputs: Sequence[Tensor], opsets: Opsets) -> list[Array]:
    """The outputs' values where they follow from known ones and are small; else empty."""
    if op.node.domain not in STANDARD or op.kind in _NOT_EVALUATED:
        return []
    first = op.inputs[0] if op.inputs else None
    if op.kind in ("Shape", "Size") and first is not None and first.shape is not None:
        dims = np.array(first.shape, np.int64)
        return [dims[op.attributes.get("start", 0) : op.attributes.get("end")] if op.kind == "Shape" else dims.prod()]
    if not op.given or any(tensor.value is None for tensor in op.given):
        return []
    if any(tensor.shape is None or math.prod(tensor.shape) > KNOWN_VALUES for tensor in outputs):
        return []
    versions = {"" if opset.domain in STANDARD else opset.domain: opset.version for opset in opsets}
    feed = {tensor.name: tensor.value for tensor in op.given}
    try:
        with foreign(f"{op.kind} cannot be computed", Unsupported):
            made = ReferenceEvaluator(op.node, opsets=versions).run(None, feed)
    except Unsupported:
        return []
    return [np.asarray(value) for value in made]
