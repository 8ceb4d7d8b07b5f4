"""What each operator computes: multiply-accumulates of the matrix operators, operations of the others.

The conventions stand in docs/roofline.md: a multiply-accumulate is two operations, an elementwise operator one per
element of its output whatever it computes, moving data none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from efserve.graph_cost.graph import VIEWS, Op, Tensor
from efserve.tensors import Shape

ELEMENTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BiasGelu",
    "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QLinearAdd",
    "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuantizeLinear", "QuickGelu", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "SwiGLU",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
# Operators that only move data; they read as much as they write.
MOVES = VIEWS | {
    "Bernoulli", "CenterCropPad", "Col2Im", "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand",
    "EyeLike", "Gather", "GatherElements", "GatherND", "MaxUnpool", "NonZero", "OneHot", "Pad", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "ReverseSequence", "Scatter", "ScatterElements",
    "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "TensorScatter", "Tile", "Transpose", "Trilu",
}  # fmt: skip
_PER_OUTPUT = {
    "BatchNormalization": 2, "DequantizeLinear": 2, "QuantizeLinear": 2, "RotaryEmbedding": 3, "GridSample": 8,
}  # fmt: skip
_PER_INPUT = {
    "ArgMax": 1, "ArgMin": 1, "CumProd": 1, "CumSum": 1, "DynamicQuantizeLinear": 4, "GlobalAveragePool": 1,
    "GlobalLpPool": 2, "GlobalMaxPool": 1, "GroupNormalization": 7, "Hardmax": 2, "InstanceNormalization": 7,
    "LayerNormalization": 7, "LogSoftmax": 5, "LpNormalization": 3, "MeanVarianceNormalization": 6,
    "QLinearGlobalAveragePool": 1, "QLinearSoftmax": 5, "RMSNormalization": 5, "ReduceL1": 2, "ReduceL2": 2,
    "ReduceLogSum": 1, "ReduceLogSumExp": 2, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceProd": 1,
    "ReduceSum": 1, "ReduceSumSquare": 2, "SimplifiedLayerNormalization": 5, "SkipLayerNormalization": 8,
    "SkipSimplifiedLayerNormalization": 6, "Softmax": 5,
}  # fmt: skip
_RESIZES = frozenset({"Resize", "Upsample"})
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool", "QLinearAveragePool"})
_NONE = 99  # position of an input that the operator does not have
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_KNOWN = ELEMENTWISE | MOVES | _POOLS | _RESIZES | frozenset(_PER_INPUT) | frozenset(_PER_OUTPUT) | {"LRN"}


@dataclass(frozen=True, slots=True)
class Work:
    """What one operator does for one batch; `macs` are multiply-accumulates in `precision`, `others` operations."""

    macs: int = 0
    others: int = 0
    precision: str = "FP32"
    is_known: bool = True  # False: counted as elementwise for want of a better rule

    @property
    def operations(self) -> int:
        """Operations, two for each multiply-accumulate."""
        return 2 * self.macs + self.others


def work_of(op: Op) -> Work:
    """What the operator computes. All of its sizes must be known."""
    matrix = _MATRIX.get(op.kind)
    if matrix is not None:
        macs, others = matrix(op)
        return Work(macs, others, _precision(op))
    precision = op.outputs[0].precision
    return Work(0, _others(op), precision if precision != "INT8" else "FP32", op.kind in _KNOWN)


def _others(op: Op) -> int:
    """Operations of what is no matrix operator."""
    kind, out = op.kind, op.outputs[0]
    if kind in MOVES:
        each, elements = 0, 0
    elif kind in _POOLS:
        each, elements = math.prod(op.attributes["kernel_shape"]), out.size
    elif kind in _PER_INPUT:
        each, elements = _PER_INPUT[kind], op.given[0].size
    elif kind in _RESIZES:
        each, elements = _per_resized(op), out.size
    elif kind == "LRN":
        each, elements = 2 * int(op.attributes["size"]) + 3, out.size
    elif kind in ("Max", "Mean", "Min", "Sum"):
        each, elements = max(1, len(op.given) - 1), out.size
    else:
        each, elements = _PER_OUTPUT.get(kind, 1), out.size
    return each * elements


def _precision(op: Op) -> str:
    """INT8 where two integer tensors are multiplied, be it as a dequantized pair; else the first float's own type."""
    if op.kind in ("MatMulNBits", "DynamicQuantizeMatMul"):
        return "INT8" if op.kind == "DynamicQuantizeMatMul" else op.given[0].precision
    multiplied = [t for t in op.given if t.size > 1 and len(t.dims) > 1][:2]
    if len(multiplied) == 2 and all(_is_8_bit(tensor) for tensor in multiplied):
        return "INT8"
    return op.given[0].precision if op.given[0].precision != "INT8" else "FP32"


def _is_8_bit(tensor: Tensor) -> bool:
    return tensor.precision == "INT8" or tensor.packed_bits == 8


Matrix = Callable[[Op], tuple[int, int]]  # an operator -> its multiply-accumulates, and its other operations


def _conv(kernel: int, bias: int) -> Matrix:
    """Positions of the kernel [m, c / groups, ...] and the bias among the inputs."""

    def count(op: Op) -> tuple[int, int]:
        return op.outputs[0].size * math.prod(_at(op, kernel).dims[1:]), _bias(op, bias)

    return count


def _conv_transpose(op: Op) -> tuple[int, int]:
    """Each element of the input meets each weight of its channel: [c, m / groups, ...]."""
    return op.given[0].size * math.prod(_at(op, 1).dims[1:]), _bias(op, 2)


def _deform_conv(op: Op) -> tuple[int, int]:
    macs = op.outputs[0].size * math.prod(_at(op, 1).dims[1:])
    return macs, _bias(op, 3) + 8 * _at(op, 2).size // 2  # each sample is interpolated between 4 elements


def _gemm(bias: int) -> Matrix:
    def count(op: Op) -> tuple[int, int]:
        return op.outputs[0].size * _at(op, 0).dims[0 if op.attributes.get("transA") else 1], _bias(op, bias)

    return count


def _matmul(op: Op) -> tuple[int, int]:
    dims = op.given[0].dims
    inner = dims[-2] if op.attributes.get("transA") else dims[-1]
    return op.outputs[0].size * inner, 0


def _einsum(op: Op) -> tuple[int, int]:
    """Every combination of indices once for each product, as if the operands were multiplied all at once."""
    equation = op.attributes["equation"].decode()
    sizes: dict[str, int] = {}
    dotted: Shape = ()
    for term, tensor in zip(equation.partition("->")[0].replace(" ", "").split(","), op.given, strict=True):
        before, dots, after = term.partition("...")
        dims = tensor.dims
        sizes |= dict(zip(before, dims, strict=False))
        if after:
            sizes |= dict(zip(after, dims[-len(after) :], strict=True))
        if dots:
            covered = dims[len(before) : len(dims) - len(after)]
            dotted = max(dotted, covered, key=math.prod)
    every = math.prod(sizes.values()) * math.prod(dotted)
    return (every * (len(op.given) - 1), 0) if len(op.given) > 1 else (0, every)


def _recurrent(op: Op) -> tuple[int, int]:
    """Data [steps, batch, input], or batch first; weights [directions, gates * hidden, input], [..., hidden]."""
    data, weights, recurrence = op.given[:3]
    cells = math.prod(data.dims[:2])
    gates = _GATES[op.kind]
    hidden = weights.dims[1] // gates * weights.dims[0]
    # adding the two products, the bias and the activation of each gate, and the new state
    return cells * (weights.size + recurrence.size), cells * hidden * (3 * gates + 4)


def _attention(op: Op) -> tuple[int, int]:
    """Scaled dot products of queries with keys and of their softmax with values, past ones included."""
    query, key = op.given[0], op.inputs[1] if len(op.inputs) > 1 else None
    out = op.outputs[0]
    if op.kind == "Attention" and op.node.domain == "com.microsoft":
        tokens, heads = query.dims[1], int(op.attributes["num_heads"])
        projection = math.prod(query.dims[:2]) * _at(op, 1).size
        scores = query.dims[0] * heads * tokens * tokens
        return projection + 2 * out.size * tokens, 5 * scores
    keys, batch_and_tokens = _attended(op, query, key)
    heads = int(op.attributes.get("q_num_heads") or op.attributes.get("num_heads") or query.dims[1])
    if query.dims == out.dims or key is None:
        return 2 * out.size * keys, 5 * heads * batch_and_tokens * keys
    return (query.size + out.size) * keys, 5 * heads * batch_and_tokens * keys


def _attended(op: Op, query: Tensor, key: Tensor | None) -> tuple[int, int]:
    """How many keys each query meets, and the queries of the batch."""
    at = {"Attention": 4, "MultiHeadAttention": 6, "GroupQueryAttention": 3}[op.kind]
    past = op.inputs[at].dims[2] if at < len(op.inputs) and op.inputs[at] is not None else 0  # type: ignore[union-attr]  # checked
    source = key if key is not None else query
    tokens = source.dims[2] if len(source.dims) == 4 else source.dims[1]
    queries = query.dims[2] if len(query.dims) == 4 else query.dims[1]
    return past + tokens, query.dims[0] * queries


def _n_bits(op: Op) -> tuple[int, int]:
    return op.outputs[0].size * int(op.attributes["K"]), 0


def _per_resized(op: Op) -> int:
    """Each output is a weighted sum of 2 (linear) or 4 (cubic) neighbours along every axis that changes."""
    neighbours = {b"linear": 2, b"cubic": 4}.get(op.attributes.get("mode", b"nearest"), 0)
    changed = sum(a != b for a, b in zip(op.outputs[0].dims, op.given[0].dims, strict=True))
    return 2 * neighbours**changed if neighbours and changed else 0


def _at(op: Op, position: int) -> Tensor:
    tensor = op.inputs[position]
    assert tensor is not None  # the operator does not run without it
    return tensor


def _bias(op: Op, position: int) -> int:
    """An addition per output, where there is a bias."""
    return op.outputs[0].size if position < len(op.inputs) and op.inputs[position] is not None else 0


_MATRIX: dict[str, Matrix] = {
    "Attention": _attention,
    "Conv": _conv(1, 2),
    "ConvInteger": _conv(1, _NONE),
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
    "DynamicQuantizeMatMul": _matmul,
    "Einsum": _einsum,
    "FusedConv": _conv(1, 2),
    "FusedGemm": _gemm(2),
    "FusedMatMul": _matmul,
    "GRU": _recurrent,
    "Gemm": _gemm(2),
    "GroupQueryAttention": _attention,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _n_bits,
    "MultiHeadAttention": _attention,
    "QGemm": _gemm(6),
    "QLinearConv": _conv(3, 8),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
