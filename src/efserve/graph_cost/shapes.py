"""Shapes of every tensor of a graph for given inputs, and the values that shapes are computed from.

One walk in the order of the nodes, each of which must come after its inputs. What only weights make is a weight too: an
engine computes it once. What shapes make is known before the model runs, and free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from efserve.graph_cost.graph import RANDOM, STANDARD, Graph, Op, Tensor, bits_of, fixed_size, weight
from efserve.graph_cost.inference import inferred_outputs, known_values
from efserve.tensors import Shape

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_FREE = frozenset({"Constant", "Shape", "Size"})


@dataclass(slots=True)
class Walk:
    """A walk over a graph for inputs of given shapes: `ops` in their order, `outputs` of the graph."""

    graph: Graph
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    not_entered: list[str] = field(default_factory=list)  # control flow that depends on values: its bodies
    _sizes: dict[str, int] = field(default_factory=dict)  # of named dimensions
    _declared: dict[str, onnx.TypeProto.Tensor] = field(default_factory=dict)

    def run(self, shapes: Mapping[str, Shape]) -> None:
        """Walk the whole graph; `shapes` has each input's whole shape."""
        graph = self.graph.file.graph
        self.tensors |= self.graph.weights
        for value in graph.input:
            if value.name in shapes:
                shape, tensor = shapes[value.name], value.type.tensor_type
                self.tensors[value.name] = Tensor(value.name, tensor.elem_type, shape, value.name)
                for dim, size in zip(tensor.shape.dim, shape, strict=True):
                    if dim.dim_param:
                        self._sizes[dim.dim_param] = size
        self._declared = {
            value.name: value.type.tensor_type
            for value in (*graph.value_info, *graph.output)
            if value.type.HasField("tensor_type")
        }
        self._walk(graph.node)

    @property
    def outputs(self) -> frozenset[str]:
        """Storages of the graph's outputs."""
        names = [value.name for value in self.graph.file.graph.output]
        return frozenset(self.tensors[name].storage for name in names if name in self.tensors)

    def _walk(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            if node.op_type in CONTROL_FLOW and node.domain in STANDARD:
                self._enter(node)
            else:
                self._step(node)

    def _step(self, node: onnx.NodeProto) -> None:
        inputs = tuple(self._tensor(name) if name else None for name in node.input)
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        op = Op(node, inputs, (), attributes)
        outputs = tuple(self._outputs(op))
        self.tensors |= {tensor.name: tensor for tensor in outputs}
        known_before = all(tensor.value is not None or tensor.is_weight for tensor in outputs)
        if not known_before and node.op_type not in _FREE:
            self.ops.append(replace(op, outputs=outputs))

    def _tensor(self, name: str) -> Tensor:
        """What an earlier node made; a tensor of a body that was not entered is one of unknown shape."""
        return self.tensors.get(name) or Tensor(name, onnx.TensorProto.FLOAT, None, name)

    def _enter(self, node: onnx.NodeProto) -> None:
        """Walks the branch of an If whose condition is known; else the node's outputs are what the file says."""
        condition = self.tensors.get(node.input[0]) if node.op_type == "If" else None
        if condition is None or condition.value is None:
            self.not_entered.append(node.op_type)
            for name in filter(None, node.output):
                self.tensors[name] = self._as_declared(name)
            return
        taken = "then_branch" if bool(condition.value.all()) else "else_branch"
        (branch,) = [attribute.g for attribute in node.attribute if attribute.name == taken]
        for constant in branch.initializer:
            self.tensors[constant.name] = weight(constant, tuple(constant.dims), self.graph.folder)
        self._walk(branch.node)
        for name, inner in zip(node.output, branch.output, strict=True):
            self.tensors[name] = replace(self._tensor(inner.name), name=name)

    def _outputs(self, op: Op) -> list[Tensor]:
        if op.kind == "Constant":
            return [self._constant(op)]
        names = [name for name in op.node.output if name]
        inferred = inferred_outputs(op, self.graph.file.opset_import)
        tensors = [inferred.get(name) or self._as_declared(name) for name in names]
        values = known_values(op, tensors, self.graph.file.opset_import)
        if values:
            pairs = zip(tensors, values, strict=True)
            tensors = [replace(tensor, value=value, shape=value.shape) for tensor, value in pairs]
        return [_placed(op, tensor) for tensor in tensors]

    def _constant(self, op: Op) -> Tensor:
        (name,) = op.node.output
        ((kind, content),) = op.attributes.items()
        proto = content if kind == "value" else _as_proto(kind, content)
        return replace(weight(proto, tuple(proto.dims), self.graph.folder), name=name, storage=name)

    def _as_declared(self, name: str) -> Tensor:
        """The tensor as the file's own notes tell it, where all of its dimensions are known."""
        tensor = self._declared.get(name)
        if tensor is None:
            return Tensor(name, onnx.TensorProto.FLOAT, None, name)
        dims = [self._sizes.get(d.dim_param, -1) if d.dim_param else fixed_size(d) for d in tensor.shape.dim]
        known = tensor.HasField("shape") and -1 not in dims
        return Tensor(name, tensor.elem_type, tuple(dims) if known else None, name)


def _as_proto(kind: str, content: Any) -> onnx.TensorProto:
    """The tensor of a Constant that is written as plain numbers or strings."""
    if kind == "sparse_value":
        return onnx.TensorProto(data_type=content.values.data_type, dims=content.dims)
    dtype = {"f": np.float32, "i": np.int64}.get(kind.removeprefix("value_")[0], np.object_)
    return numpy_helper.from_array(np.asarray(content, dtype))


def _placed(op: Op, tensor: Tensor) -> Tensor:
    """The output with where it lies: in its source's memory for a view, beside the weights where only they make it."""
    if not op.given:
        return tensor
    first = op.given[0]
    if op.is_view and tensor.name == op.node.output[0]:
        tensor = replace(tensor, storage=first.storage, packed_bits=first.packed_bits)
    if op.kind == "DequantizeLinear":
        tensor = replace(tensor, packed_bits=bits_of(first.element_type))
    if op.kind in RANDOM or not all(given.is_weight for given in op.given):
        return tensor
    source = max(op.given, key=lambda given: given.size)
    if source.size != tensor.size:
        return replace(tensor, is_weight=True)
    packed_bits = tensor.packed_bits or source.packed_bits
    return replace(tensor, is_weight=True, storage=source.storage, packed_bits=packed_bits)
