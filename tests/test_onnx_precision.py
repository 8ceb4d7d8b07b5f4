"""Graphs in a lower precision: same inputs and outputs, the same answers to within the precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from efserve.engines.onnx_precision import is_quantised, lowered
from efserve.engines.onnx_signature import read_signature
from efserve.errors import LoadFailed
from efserve.tensors import TensorSpec

DIGITS = Path(__file__).parents[1] / "model_dir" / "digits" / "1" / "model.onnx"


def run(model: onnx.ModelProto, **feeds: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def graph(nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], **weights: Any) -> Any:
    def infos(values: dict[str, Any]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, *kind) for name, kind in values.items()]

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


FLOAT = TensorProto.FLOAT


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_a_trained_model_in_fp16_answers_the_same() -> None:
    model = onnx.load(str(DIGITS))
    images = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)
    low = lowered(model, "fp16")
    onnx.checker.check_model(low, full_check=True)
    (expected,), (found,) = run(model, input=images), run(low, input=images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert low.ByteSize() < 0.6 * model.ByteSize()
    assert {weight.data_type for weight in low.graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}


def test_a_trained_model_in_bf16_answers_the_same() -> None:
    model = onnx.load(str(DIGITS))
    images = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    low = lowered(model, "bf16")
    assert {weight.data_type for weight in low.graph.initializer} <= {TensorProto.BFLOAT16, TensorProto.INT64}
    evaluator: Any = ReferenceEvaluator(low)
    (found,) = evaluator.run(None, {"input": images})
    np.testing.assert_allclose(found, run(model, input=images)[0], atol=3e-2)


def test_an_operator_that_has_no_fp16_keeps_fp32_between_casts() -> None:
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("MelWeightMatrix", ["n", "n", "n", "low", "high"], ["unused"]),
        helper.make_node("RandomUniformLike", ["a"], ["r"], dtype=FLOAT, seed=1.0, low=0.0, high=0.0),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    model = graph(nodes[:1] + nodes[2:], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, one=np.ones(2, np.float32))
    low = lowered(model, "fp16")
    types = types_of(low)
    assert types["r"] == FLOAT
    assert types["a__low"] == TensorProto.FLOAT16
    assert [node.op_type for node in low.graph.node].count("Cast") >= 2
    np.testing.assert_array_equal(run(low, x=np.zeros(2, np.float32))[0], [1, 1])


def test_sizes_that_must_be_fp32_stay_fp32() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["y"], mode="nearest"),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    model = graph(nodes, {"x": (FLOAT, [1, 1, 2, 2])}, {"y": (FLOAT, [1, 1, 4, 4])}, scales=scales)
    low = lowered(model, "fp16")
    onnx.checker.check_model(low, full_check=True)
    (weight,) = low.graph.initializer
    assert (weight.name, weight.data_type) == ("scales", FLOAT)


def test_branches_and_constants() -> None:
    def branch(name: str, factor: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.array([factor], np.float32), f"{name}_w")
        nodes = [helper.make_node("Mul", ["a", f"{name}_w"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, [2])], [weight])

    value = numpy_helper.from_array(np.array([2.0, 4.0], np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Mul", ["x", "c"], ["a"]),
        helper.make_node("If", ["flag"], ["b"], then_branch=branch("then", 10), else_branch=branch("else", 100)),
        helper.make_node("Cast", ["n"], ["m"], to=FLOAT),
        helper.make_node("Add", ["b", "m"], ["y"]),
    ]
    inputs = {"x": (FLOAT, [2]), "flag": (TensorProto.BOOL, []), "n": (TensorProto.INT64, [2])}
    low = lowered(graph(nodes, inputs, {"y": (FLOAT, [2])}), "fp16")
    onnx.checker.check_model(low, full_check=True)
    feeds: Callable[[bool], dict[str, Any]] = lambda flag: {  # noqa: E731  # three feeds on one line each
        "x": np.ones(2, np.float32),
        "flag": np.array(flag),
        "n": np.array([1, 2]),
    }
    assert run(low, **feeds(True))[0].tolist() == [21, 42]
    assert run(low, **feeds(False))[0].tolist() == [201, 402]


def test_an_operator_of_somebody_else_keeps_what_it_had() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Theirs", ["a"], ["b"], domain="their.domain"),
        helper.make_node("Add", ["b", "w"], ["y"]),
    ]
    model = graph(nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, w=np.ones(2, np.float32))
    model.opset_import.append(helper.make_opsetid("their.domain", 1))
    low = lowered(model, "fp16").graph
    assert [node.op_type for node in low.node] == ["Cast", "Relu", "Cast", "Theirs", "Add"]
    assert [weight.data_type for weight in low.initializer] == [FLOAT]


def test_weights_beyond_fp16_become_its_largest() -> None:
    model = graph(
        [helper.make_node("Min", ["x", "w"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, w=np.array([1e9], "f4")
    )
    assert run(lowered(model, "fp16"), x=np.array([70000.0], np.float32))[0][0] >= 65504


def test_a_graph_whose_types_contradict() -> None:
    inputs = {"x": (FLOAT, [1]), "n": (TensorProto.INT64, [1])}
    model = graph([helper.make_node("Add", ["x", "n"], ["y"])], inputs, {"y": (FLOAT, [1])})
    with pytest.raises(LoadFailed, match="types cannot be told, so it cannot run in bf16"):
        lowered(model, "bf16")


def test_quantised_or_not() -> None:
    assert not is_quantised(onnx.load(str(DIGITS)))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    assert is_quantised(graph(nodes, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, **weights))


def test_the_signature_of_a_file() -> None:
    found = read_signature(DIGITS)
    assert found.inputs == (TensorSpec("input", "FP32", (-1, 1, 8, 8)),)
    assert found.outputs == (TensorSpec("scores", "FP32", (-1, 10)),)
