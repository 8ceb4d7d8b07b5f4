"""Tiny ONNX models, built on the spot; each function returns the bytes of a `model.onnx`."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BF16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BFLOAT16
Value = tuple[str, int, list[str | int]]  # name, element type, shape; a dimension with a name is free


def model(
    nodes: list[onnx.NodeProto], inputs: list[Value], outputs: list[Value], weights: list[TensorProto] | None = None
) -> bytes:
    """A model of these nodes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        weights or [],
    )
    opset = helper.make_opsetid("", 18)
    data: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return data


def save(repository: Path, name: str, data: bytes) -> Path:
    """Write the model into a repository as version 1; its version folder."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)
    return folder


def identity(columns: int = 16, element_type: int = FLOAT) -> bytes:
    """input [n, columns] -> output, equal."""
    node = helper.make_node("Identity", ["input"], ["output"])
    return model([node], [("input", element_type, ["n", columns])], [("output", element_type, ["n", columns])])


def string_identity() -> bytes:
    """input BYTES [n, length] -> output, equal."""
    node = helper.make_node("Identity", ["input"], ["output"])
    return model([node], [("input", STRING, ["n", "length"])], [("output", STRING, ["n", "length"])])


def add_sub(columns: int = 4) -> bytes:
    """a, b FP32 [n, columns] -> sum, difference."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    shape: list[str | int] = ["n", columns]
    return model(
        nodes, [("a", FLOAT, shape), ("b", FLOAT, shape)], [("sum", FLOAT, shape), ("difference", FLOAT, shape)]
    )


def dynamic(first_columns: str | int = 1) -> bytes:
    """input FP32 [n, length] -> twice [n, length], first [n, 1], which the file may call by another dimension."""
    nodes = [
        helper.make_node("Add", ["input", "input"], ["twice"]),
        helper.make_node("Slice", ["input", "from", "to", "axes"], ["first"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([value]), name) for name, value in (("from", 0), ("to", 1), ("axes", 1))
    ]
    outputs: list[Value] = [("twice", FLOAT, ["n", "length"]), ("first", FLOAT, ["n", first_columns])]
    return model(nodes, [("input", FLOAT, ["n", "length"])], outputs, weights)


def without_batch() -> bytes:
    """x FP32 [2, 3] -> y FP32 [3, 2], transposed: a model that cannot batch."""
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])
    return model([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [3, 2])])


def doubles_rows() -> bytes:
    """input FP32 [n, 4] -> output, said to be [n, 4], in truth [2n, 4]."""
    node = helper.make_node("Concat", ["input", "input"], ["output"], axis=0)
    return model([node], [("input", FLOAT, ["n", 4])], [("output", FLOAT, ["n", 4])])


def huge_output(columns: int = 4_000_000) -> bytes:
    """input FP32 [n, 1] -> output FP32 [n, columns], the input repeated: 16 MB per row."""
    node = helper.make_node("Expand", ["input", "shape"], ["output"])
    shape = numpy_helper.from_array(np.array([1, columns]), "shape")
    return model([node], [("input", FLOAT, ["n", 1])], [("output", FLOAT, ["n", columns])], [shape])


def cnn(seed: int = 0) -> bytes:
    """input FP32 [n, 1, 28, 28] -> conv 3x3x32, conv 3x3x64, pool, 9216-128-10 -> output FP32 [n, 10]."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (32, 1, 3, 3), "w2": (64, 32, 3, 3), "w3": (9216, 128), "w4": (128, 10)}
    weights = [
        numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["d1"]),
        helper.make_node("Relu", ["d1"], ["r3"]),
        helper.make_node("MatMul", ["r3", "w4"], ["output"]),
    ]
    return model(nodes, [("input", FLOAT, ["n", 1, 28, 28])], [("output", FLOAT, ["n", 10])], weights)


def save_with_external_data(repository: Path, name: str) -> Path:
    """The CNN with its weights in `model.onnx.data` beside it; its version folder."""
    folder = save(repository, name, cnn())
    path = folder / "model.onnx"
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="model.onnx.data")
    return folder
