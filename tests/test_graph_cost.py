"""Operations and bytes counted from ONNX graphs: formulas for random shapes, laws, and what cannot be counted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnx_models
from efserve.errors import ConfigError
from efserve.graph_cost.count import GraphCost, count
from efserve.graph_cost.graph import Graph, read_graph
from efserve.tensors import Shape, TensorSpec

FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
Dims = Sequence[int | str]
small = st.integers(1, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def read(folder: Path, data: bytes) -> Graph:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return read_graph(path)


def weights(**shapes: Shape) -> list[TensorProto]:
    return [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]


def cost_of(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    constants: Sequence[TensorProto] = (),
    kind: int = FLOAT,
    domains: Sequence[str] = (),
) -> GraphCost:
    """The cost of a graph whose output is `y`; its inputs have free dimensions, bound to these shapes."""
    free: dict[str, Dims] = {name: [f"{name}{at}" for at in range(len(shape))] for name, shape in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, dims) for name, dims in free.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        list(constants),
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return count(read(folder, model.SerializeToString()), inputs)


def op(kind: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


@given(st.lists(small, max_size=2), small, small, small)
def test_matmul_multiplies_rows_by_columns(folder: Path, stack: list[int], m: int, k: int, n: int) -> None:
    cost = cost_of(folder, [op("MatMul", "a", "b")], {"a": (*stack, m, k), "b": (k, n)})
    rows = int(np.prod(stack)) * m
    assert cost.macs == rows * k * n
    assert cost.operations == {"FP32": 2 * rows * k * n}
    assert cost.fused_bytes == cost.unfused_bytes == 4 * (rows * k + k * n + rows * n)
    assert cost.weight_bytes == cost.parameters == 0


@given(small, small, small, small, small)
def test_matmul_broadcasts(folder: Path, s: int, t: int, m: int, k: int, n: int) -> None:
    assert cost_of(folder, [op("MatMul", "a", "b")], {"a": (s, 1, m, k), "b": (t, k, n)}).macs == s * t * m * k * n


@given(small, small, small, st.booleans(), st.booleans(), st.booleans())
def test_gemm(folder: Path, m: int, k: int, n: int, trans_a: bool, trans_b: bool, bias: bool) -> None:
    shapes = {"a": (k, m) if trans_a else (m, k), "b": (n, k) if trans_b else (k, n)} | ({"c": (n,)} if bias else {})
    cost = cost_of(folder, [op("Gemm", *shapes, transA=int(trans_a), transB=int(trans_b))], shapes)
    assert cost.macs == m * k * n
    assert cost.total_operations == 2 * m * k * n + (m * n if bias else 0)


@given(small, st.integers(1, 3), small, small, st.integers(1, 3), st.integers(3, 9))
def test_convolutions(folder: Path, batch: int, groups: int, c: int, m: int, kernel: int, size: int) -> None:
    c, m = c * groups, m * groups
    data = {"x": (batch, c, size, size)}
    forward = weights(w=(m, c // groups, kernel, kernel), b=(m,))
    cost = cost_of(folder, [op("Conv", "x", "w", "b", group=groups)], data, forward)
    out = batch * m * (size - kernel + 1) ** 2
    assert cost.macs == out * c // groups * kernel**2
    assert cost.total_operations == 2 * cost.macs + out
    assert cost.weight_bytes == 4 * (m * c // groups * kernel**2 + m)
    backward = weights(w=(c, m // groups, kernel, kernel))
    cost = cost_of(folder, [op("ConvTranspose", "x", "w", group=groups, strides=[2, 2])], data, backward)
    assert cost.macs == batch * c * size**2 * m // groups * kernel**2


@given(small, small, small, small)
def test_einsum_is_a_matmul(folder: Path, b: int, m: int, k: int, n: int) -> None:
    shapes = {"p": (b, m, k), "q": (b, n, k)}
    assert cost_of(folder, [op("Einsum", "p", "q", equation="bmk,bnk->bmn")], shapes).macs == b * m * k * n
    assert cost_of(folder, [op("Einsum", "p", "q", equation="...mk,...nk->...mn")], shapes).macs == b * m * k * n


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_cells(folder: Path, kind: str, gates: int) -> None:
    steps, batch, size, hidden = 7, 3, 5, 4
    constants = weights(w=(2, gates * hidden, size), r=(2, gates * hidden, hidden))
    node = op(kind, "x", "w", "r", hidden_size=hidden, direction="bidirectional")
    cost = cost_of(folder, [node], {"x": (steps, batch, size)}, constants)
    assert cost.macs == steps * batch * 2 * gates * hidden * (size + hidden)


def test_attention_counts_both_products(folder: Path) -> None:
    batch, heads, queries, keys, size = 2, 3, 5, 7, 4
    shapes = {"q": (batch, heads, queries, size), "k": (batch, heads, keys, size), "v": (batch, heads, keys, size)}
    graph = helper.make_graph(
        [op("Attention", "q", "k", "v")],
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    cost = count(read(folder, model.SerializeToString()), shapes)
    assert cost.macs == 2 * batch * heads * queries * keys * size
    flat = {"q": (batch, queries, heads * size), "k": (batch, keys, heads * size), "v": (batch, keys, heads * size)}
    own = op("MultiHeadAttention", "q", "k", "v", num_heads=heads, domain="com.microsoft")
    assert cost_of(folder, [own], flat, domains=["com.microsoft"]).operations == cost.operations


@given(st.integers(1, 64))
def test_cost_is_linear_in_the_batch(folder: Path, batch: int) -> None:
    graph = read(folder, onnx_models.cnn())
    one, many = (count(graph, {"input": (rows, 1, 28, 28)}) for rows in (1, batch))
    assert many.macs == batch * one.macs
    assert many.operations == {"FP32": batch * one.operations["FP32"]}
    assert many.weight_bytes == one.weight_bytes == 4 * one.parameters
    for moved in ("fused_bytes", "unfused_bytes"):
        assert getattr(many, moved) - many.weight_bytes == batch * (getattr(one, moved) - one.weight_bytes)


def test_a_network_by_hand(folder: Path) -> None:
    cost = count(read(folder, onnx_models.cnn()), {"input": (1, 1, 28, 28)})
    convolutions = (26 * 26 * 32 * 9, 24 * 24 * 64 * 32 * 9)
    assert cost.macs == sum(convolutions) + 9216 * 128 + 128 * 10
    relus, pool = 26 * 26 * 32 + 24 * 24 * 64 + 128, 12 * 12 * 64 * 4
    assert cost.total_operations == 2 * cost.macs + relus + pool
    assert cost.parameters == 32 * 9 + 64 * 32 * 9 + 9216 * 128 + 128 * 10
    c1, c2, pooled = 26 * 26 * 32, 24 * 24 * 64, 9216
    passed_once = 28 * 28 + 2 * (c1 + c2 + pooled + 128) + 10  # relus fused: each layer is written and read once
    assert cost.fused_bytes == 4 * (cost.parameters + passed_once)
    assert cost.unfused_bytes == cost.fused_bytes + 4 * 2 * (c1 + c2 + 128)


def test_fusion_keeps_what_others_read(folder: Path) -> None:
    """A residual block: the first step is written, since the second reads it, once; the second product never is."""
    nodes = [
        op("MatMul", "x", "w", output="a"),
        op("Relu", "a", output="r"),
        op("MatMul", "r", "w", output="b"),
        op("Add", "b", "r"),
    ]
    cost = cost_of(folder, nodes, {"x": (2, 8)}, weights(w=(8, 8)))
    tensor = 4 * 2 * 8
    assert cost.weight_bytes == 4 * 64  # used twice, read once
    assert cost.fused_bytes == cost.weight_bytes + 4 * tensor  # x is read, r written and read, y written
    assert cost.unfused_bytes == cost.weight_bytes + (2 + 2 + 2 + 3) * tensor
    assert cost.working_set_bytes == cost.weight_bytes + 2 * tensor


def test_shapes_follow_from_computed_values(folder: Path) -> None:
    """Half of the columns by Shape, Gather, Div and Concat, as exporters write it."""
    constants = [
        numpy_helper.from_array(np.array([value]), name) for name, value in (("one", 1), ("two", 2), ("minus", -1))
    ]
    nodes = [
        op("Shape", "x", output="s"),
        op("Gather", "s", "one", output="c"),
        op("Div", "c", "two", output="h"),
        op("Concat", "minus", "h", output="t", axis=0),
        op("Reshape", "x", "t", output="z"),
        op("MatMul", "z", "w"),
    ]
    cost = cost_of(folder, nodes, {"x": (6, 8)}, [*constants, *weights(w=(4, 5))])
    assert cost.macs == 12 * 4 * 5
    assert cost.total_operations == 2 * cost.macs
    assert cost.parameters == 20
    assert cost.left_out == {}


def test_views_are_free_and_moves_cost_bytes(folder: Path) -> None:
    flat = cost_of(folder, [op("Flatten", "x", output="f"), op("Relu", "f")], {"x": (2, 3, 4)})
    assert flat.unfused_bytes == flat.fused_bytes == 2 * 4 * 24
    moved = cost_of(folder, [op("Transpose", "x", output="t"), op("Relu", "t")], {"x": (2, 3, 4)})
    assert moved.unfused_bytes == 4 * 4 * 24
    assert moved.fused_bytes == 2 * 4 * 24
    assert flat.total_operations == moved.total_operations == 24


def test_a_table_is_read_by_the_row(folder: Path) -> None:
    graph = helper.make_graph(
        [op("Gather", "table", "ids")],
        "graph",
        [helper.make_tensor_value_info("ids", INT64, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 16])],
        weights(table=(1000, 16)),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    cost = count(read(folder, model.SerializeToString()), {"ids": (3,)})
    assert cost.parameters == 16_000
    assert cost.fused_bytes == 3 * 8 + 2 * 3 * 16 * 4


def test_half_precision(folder: Path) -> None:
    constants = [numpy_helper.from_array(np.ones((8, 4), np.float16), "w")]
    cost = cost_of(folder, [op("MatMul", "x", "w")], {"x": (2, 8)}, constants, FLOAT16)
    assert cost.operations == {"FP16": 2 * 2 * 8 * 4}
    assert cost.fused_bytes == 2 * (16 + 32 + 8)


def quantized(folder: Path) -> GraphCost:
    constants = [
        *weights(scale=()),
        numpy_helper.from_array(np.ones((8, 4), np.int8), "packed"),
        numpy_helper.from_array(np.zeros((), np.int8), "zero"),
    ]
    nodes = [
        op("QuantizeLinear", "x", "scale", "zero", output="q"),
        op("DequantizeLinear", "q", "scale", "zero", output="d"),
        op("DequantizeLinear", "packed", "scale", "zero", output="w"),
        op("MatMul", "d", "w", output="m"),
        op("QuantizeLinear", "m", "scale", "zero", output="n"),
        op("DequantizeLinear", "n", "scale", "zero"),
    ]
    return cost_of(folder, nodes, {"x": (2, 8)}, constants)


def test_pairs_of_quantize_and_dequantize_compute_in_int8(folder: Path) -> None:
    cost = quantized(folder)
    assert cost.operations["INT8"] == 2 * 2 * 8 * 4
    assert cost.macs == 2 * 8 * 4
    # x is read, q is written and read, m is written quantized; scale and zero point are read as weights
    assert cost.weight_bytes == 8 * 4 + 4 + 1
    assert cost.fused_bytes == cost.weight_bytes + 4 * 16 + 2 * 16 + 8


def test_integer_operators_compute_in_int8(folder: Path) -> None:
    cost = cost_of(folder, [op("MatMulInteger", "a", "b")], {"a": (3, 5), "b": (5, 2)}, kind=TensorProto.UINT8)
    assert cost.operations == {"INT8": 2 * 3 * 5 * 2}
    assert cost.fused_bytes == 15 + 10 + 4 * 6


def test_unknown_operators_are_told(folder: Path) -> None:
    nodes = [op("MatMul", "x", "w", output="a"), op("Strange", "a", output="b", domain="own"), op("Relu", "b")]
    cost = cost_of(folder, nodes, {"x": (2, 8)}, weights(w=(8, 8)), domains=["own"])
    assert cost.left_out == {"own.Strange": 1, "Relu": 1}
    assert cost.macs == 128
    det = cost_of(folder, [op("Det", "x")], {"x": (2, 3, 3)})
    assert det.guessed == {"Det": 1}
    assert det.total_operations == 2


def branches() -> tuple[onnx.GraphProto, onnx.GraphProto]:
    def branch(kind: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(f"of_{kind}", FLOAT, None)
        return helper.make_graph([op(kind, "x", "w", output=f"of_{kind}")], kind, [], [made])

    return branch("MatMul"), branch("Add")


@pytest.mark.parametrize(("condition", "macs", "operations"), [(True, 512, 1024), (False, 0, 64)])
def test_a_known_branch_is_counted(folder: Path, condition: bool, macs: int, operations: int) -> None:
    then, other = branches()
    constants = [*weights(w=(8, 8)), numpy_helper.from_array(np.array(condition), "condition")]
    cost = cost_of(folder, [op("If", "condition", then_branch=then, else_branch=other)], {"x": (8, 8)}, constants)
    assert (cost.macs, cost.total_operations, cost.left_out) == (macs, operations, {})


def test_control_flow_that_depends_on_values_is_told(folder: Path) -> None:
    then, other = branches()
    nodes = [
        op("ReduceMax", "x", output="m", keepdims=0),
        op("Cast", "m", output="condition", to=TensorProto.BOOL),
        op("If", "condition", then_branch=then, else_branch=other),
    ]
    cost = cost_of(folder, nodes, {"x": (8, 8)}, weights(w=(8, 8)))
    assert cost.left_out == {"If": 1}
    assert cost.macs == 0


def test_functions_of_the_model_are_counted(folder: Path) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    body = [op("MatMul", "p", "q", output="m"), op("Relu", "m", output="r")]
    function = helper.make_function("own", "Dense", ["p", "q"], ["r"], body, opsets[:1])
    graph = helper.make_graph(
        [op("Dense", "x", "w", domain="own")],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        weights(w=(8, 4)),
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    cost = count(read(folder, model.SerializeToString()), {"x": (3, 8)})
    assert cost.total_operations == 2 * 3 * 8 * 4 + 3 * 4
    assert cost.left_out == cost.guessed == {}


def test_large_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", 100]) for name in "xy"]
    graph = helper.make_graph([op("MatMul", "x", "w")], "graph", values[:1], values[1:], weights(w=(100, 100)))
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), str(path), save_as_external_data=True, location="weights")
    (tmp_path / "weights").unlink()
    cost = count(read_graph(path), {"x": (2, 100)})
    assert (cost.macs, cost.parameters, cost.weight_bytes) == (20_000, 10_000, 40_000)


def test_the_signature_has_free_dimensions(folder: Path) -> None:
    graph = read(folder, onnx_models.cnn())
    assert graph.signature.inputs == (TensorSpec("input", "FP32", (-1, 1, 28, 28)),)
    assert graph.signature.outputs == (TensorSpec("output", "FP32", (-1, 10)),)


@pytest.mark.parametrize("data", [b"", b"no model", onnx_models.cnn()[:1000]])
def test_a_broken_file_is_one_sentence(folder: Path, data: bytes) -> None:
    path = folder / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="cannot read the graph of"):
        read_graph(path)
