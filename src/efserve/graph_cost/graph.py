"""An ONNX file as far as its costs depend on it: the nodes, and the sizes of its weights.

Weights in files beside the model stay on the disk but for the small ones, which tell shapes; so a model of any size is
read in little memory. Calls of the model's own functions are replaced by their bodies.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import external_data_helper, numpy_helper

from efserve.errors import ConfigError
from efserve.foreign import foreign
from efserve.model_config import FileSignature
from efserve.tensors import Array, Shape, TensorSpec

KNOWN_VALUES = 4096  # a tensor of more elements is never one that shapes are computed from

_DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
_BITS = {1: 32, 4: 16, 5: 16, 6: 32, 7: 64, 8: 64, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16} | {
    21: 4, 22: 4, 23: 4, 25: 2, 26: 2,
}  # fmt: skip
STANDARD = ("", "ai.onnx")  # domains of the operators that ONNX itself defines
VIEWS = frozenset({"Flatten", "Identity", "Optional", "OptionalGetElement", "Reshape", "Squeeze", "Unsqueeze"})
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"
})  # fmt: skip

_FLOATS = frozenset({1, 10, 11, 16})
_QUANTIZED = frozenset({2, 3, *range(17, 27)})  # integers of 8 bits and fewer, floats of 8 bits and fewer
_INT32 = 6  # biases of quantized layers


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor of a batch. `storage` names the memory that it lies in: views share it with their source."""

    name: str
    element_type: int  # of onnx.TensorProto
    shape: Shape | None  # None: not known before the model runs
    storage: str
    value: Array | None = None  # where it is known before the model runs, and small
    is_weight: bool = False  # the same in every batch
    packed_bits: int = 0  # per element, where it comes out of a DequantizeLinear

    @property
    def size(self) -> int:
        """Number of elements; 0 where that is not known."""
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def dims(self) -> Shape:
        """The shape where it is known, which the caller has made sure of."""
        assert self.shape is not None
        return self.shape

    @property
    def bytes(self) -> int:
        """What it takes in memory. A dequantized weight is kept as it is stored."""
        bits = self.packed_bits if self.is_weight and self.packed_bits else bits_of(self.element_type)
        return -(-self.size * bits // 8)

    @property
    def precision(self) -> str:
        """FP32, FP16, BF16, FP64 or INT8: what a multiplication of it is done in."""
        if self.element_type in _QUANTIZED:
            return "INT8"
        return _DATATYPES[self.element_type] if self.element_type in _FLOATS else "FP32"


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """A node that runs in every batch, with what is known of its tensors. Inputs left out are None."""

    node: onnx.NodeProto
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any]

    @property
    def kind(self) -> str:
        """The operator's name, without its domain."""
        return str(self.node.op_type)

    @property
    def full_kind(self) -> str:
        """The operator's name, with its domain where that is not the standard one."""
        return self.kind if self.node.domain in STANDARD else f"{self.node.domain}.{self.kind}"

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The inputs that are there."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)

    @property
    def is_view(self) -> bool:
        """True when the output lies where the input does."""
        return self.kind in VIEWS

    @property
    def has_shapes(self) -> bool:
        """True when the size of each input and of the first output is known."""
        return all(tensor.shape is not None for tensor in (*self.given, self.outputs[0]))


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A model file, read."""

    file: onnx.ModelProto
    folder: Path  # where files with weights lie beside it
    weights: dict[str, Tensor]
    signature: FileSignature
    parameters: int  # elements of its weights; whole numbers of 64 bits and truth values tell shapes and do not count


def bits_of(element_type: int) -> int:
    """Bits of one element; types of 8 bits are those that the table does not name."""
    return _BITS.get(element_type, 8)


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file. Raises ConfigError for a file that is none."""
    with foreign(f"cannot read the graph of {path}", ConfigError):
        file = onnx.load(str(path), load_external_data=False)
        if file.functions:
            file = onnx.inliner.inline_local_functions(file)
        tensors = [*file.graph.initializer, *(sparse.values for sparse in file.graph.sparse_initializer)]
        dims = [tuple(t.dims) for t in file.graph.initializer]
        dims += [tuple(sparse.dims) for sparse in file.graph.sparse_initializer]
        weights = {t.name: weight(t, d, path.parent) for t, d in zip(tensors, dims, strict=True)}
    if not file.graph.node:
        raise ConfigError(f"cannot read the graph of {path}: it holds no operators")
    inputs = [value for value in file.graph.input if value.name not in weights]
    constants = [
        a.t for node in file.graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
    ]
    kinds = [(w.element_type, w.size) for w in weights.values()]
    kinds += [(t.data_type, math.prod(t.dims)) for t in constants if t.dims]
    parameters = sum(size for kind, size in kinds if kind in _FLOATS | _QUANTIZED | {_INT32})
    return Graph(file, path.parent, weights, FileSignature(_specs(inputs), _specs(file.graph.output)), parameters)


def weight(tensor: onnx.TensorProto, dims: Shape, folder: Path) -> Tensor:
    """A constant of the file, with its value where that is small."""
    value = None
    if math.prod(tensor.dims) <= KNOWN_VALUES and dims == tuple(tensor.dims):
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        value = np.asarray(numpy_helper.to_array(tensor))
    return Tensor(tensor.name, tensor.data_type, dims, tensor.name, value, is_weight=True)


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Free dimensions are -1; what is no tensor (a sequence, a map) or of unknown rank is left out."""
    tensors = [(value.name, value.type.tensor_type) for value in values if value.type.HasField("tensor_type")]
    return tuple(
        TensorSpec(name, _DATATYPES.get(tensor.elem_type, "BYTES"), tuple(map(fixed_size, tensor.shape.dim)))
        for name, tensor in tensors
        if tensor.HasField("shape")
    )


def fixed_size(dim: onnx.TensorShapeProto.Dimension) -> int:
    """A dimension's size where the file fixes it, else -1."""
    return int(dim.dim_value) if dim.HasField("dim_value") else -1
