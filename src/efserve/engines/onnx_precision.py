"""An ONNX graph of FP32 computing in FP16 or BF16, with inputs and outputs as they were.

For strongly typed TensorRT networks, whose precision is that of the file. Each operator that the newest ONNX defines
for the lower precision gets its FP32 tensors in it (BF16 convolutions came late, but TensorRT does not mind the version
that a file states); the others keep FP32, with casts around them.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from efserve.errors import LoadFailed

_TARGETS = {"fp16": (TensorProto.FLOAT16, "tensor(float16)"), "bf16": (TensorProto.BFLOAT16, "tensor(bfloat16)")}
_LARGEST_FP16 = 65504.0


def is_quantised(model: onnx.ModelProto) -> bool:
    """True when the graph says itself what is computed in integers."""
    operators = {node.op_type for node in model.graph.node}
    return bool(operators & {"QuantizeLinear", "DequantizeLinear"})


def lowered(model: onnx.ModelProto, precision: Literal["fp16", "bf16"]) -> onnx.ModelProto:
    """A copy of the model, weights inside, that computes in `precision`; LoadFailed where its types cannot be told."""
    try:
        typed = onnx.shape_inference.infer_shapes(model, check_type=True)
    except onnx.shape_inference.InferenceError as exc:
        raise LoadFailed(f"the model's types cannot be told, so it cannot run in {precision}: {exc}") from exc
    return _Lowering(typed, precision).run()


class _Lowering:
    """One pass over the nodes in their order; values exist as they were, lowered, or both."""

    def __init__(self, model: onnx.ModelProto, precision: Literal["fp16", "bf16"]) -> None:
        self._model = model
        self._target, self._type_name = _TARGETS[precision]
        self._opsets = {entry.domain or "": entry.version for entry in model.opset_import}
        graph = model.graph
        self._floats = {
            value.name
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._known = {each.name for each in (*graph.input, *graph.value_info, *graph.output, *graph.initializer)} | {
            ""
        }
        self._weights = {weight.name: weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
        self._floats |= self._weights.keys()
        self._low: dict[str, str] = {}  # name of a value -> name of its lowered self
        self._lost: set[str] = set()  # values that exist lowered only
        self._nodes: list[onnx.NodeProto] = []
        self._initializers = list(graph.initializer)

    def run(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in graph.node:
            if self._can_lower(node):
                self._lower(node)
            else:
                self._keep(node)
        for output in graph.output:
            self._original(output.name)
        used = {name for node in self._nodes for name in _inputs_of(node)} | {each.name for each in graph.output}
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        for field in ("node", "initializer", "value_info"):
            made.graph.ClearField(field)
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(each for each in self._initializers if each.name in used)
        return made

    def _can_lower(self, node: onnx.NodeProto) -> bool:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return False  # a branch or a loop: it may use any value by its name
        if any(attribute.name == "dtype" for attribute in node.attribute):
            return False  # makes FP32 by itself
        if not {*node.input, *node.output} <= self._known:
            return False  # its other types cannot be told
        schema = self._schema(node)
        if schema is None:
            return False
        allowed = {each.type_param_str: {*each.allowed_type_strs} for each in schema.type_constraints}
        for each in onnx.defs.get_schema(node.op_type, _domain(node)).type_constraints:  # the newest definition
            allowed.setdefault(each.type_param_str, set()).update(each.allowed_type_strs)
        kinds = {
            formal.type_str
            for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs))
            for name, formal in _paired(names, formals)
            if name in self._floats and formal.type_str in allowed
        }
        return bool(kinds) and all(self._type_name in allowed[kind] for kind in kinds)

    def _lower(self, node: onnx.NodeProto) -> None:
        schema = self._schema(node)
        assert schema is not None  # or it could not be lowered
        variables = {each.type_param_str for each in schema.type_constraints}
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for index, (name, formal) in enumerate(_paired(node.input, schema.inputs)):
            if name in self._floats:
                made.input[index] = self._lowered(name) if formal.type_str in variables else self._original(name)
        for index, (name, formal) in enumerate(_paired(node.output, schema.outputs)):
            if name in self._floats and formal.type_str in variables:
                made.output[index] = self._low[name] = f"{name}__low"
                self._lost.add(name)
        for attribute in made.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self._target
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self._converted(attribute.t, attribute.t.name))
        self._nodes.append(made)

    def _keep(self, node: onnx.NodeProto) -> None:
        for name in _inputs_of(node):
            self._original(name)
        self._nodes.append(node)

    def _lowered(self, name: str) -> str:
        """The name of the lowered value; made from the original by a cast, or once and for all for a weight."""
        if name not in self._low:
            self._low[name] = f"{name}__low"
            if name in self._weights:
                self._initializers.append(self._converted(self._weights[name], self._low[name]))
            else:
                self._nodes.append(helper.make_node("Cast", [name], [self._low[name]], to=self._target))
        return self._low[name]

    def _original(self, name: str) -> str:
        """Sees to it that the value exists in FP32 under its own name."""
        if name in self._lost:
            self._lost.remove(name)
            self._nodes.append(helper.make_node("Cast", [self._low[name]], [name], to=TensorProto.FLOAT))
        return name

    def _converted(self, tensor: TensorProto, name: str) -> TensorProto:
        array = numpy_helper.to_array(tensor)
        if self._target == TensorProto.FLOAT16:
            return numpy_helper.from_array(np.clip(array, -_LARGEST_FP16, _LARGEST_FP16).astype(np.float16), name)
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        return helper.make_tensor(name, TensorProto.BFLOAT16, tensor.dims, rounded.astype("<u2").tobytes(), raw=True)

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        try:
            return onnx.defs.get_schema(node.op_type, self._opsets.get(_domain(node), 0), _domain(node))
        except onnx.defs.SchemaError:
            return None


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else str(node.domain)


def _paired(
    names: Sequence[str], formals: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> Iterator[tuple[str, onnx.defs.OpSchema.FormalParameter]]:
    """Each actual name with its formal parameter, of which the last may stand for many."""
    for index, name in enumerate(names):
        yield name, formals[min(index, len(formals) - 1)]


def _inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, by the graphs inside it, too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            yield from (each.name for each in graph.output)
            for inner in graph.node:
                yield from _inputs_of(inner)
