"""How much models slow each other down on one processor: digits, one that fits its core's cache, one that fits none.

    python benchmarks/pairs.py [options of `efserve profile --pairs`]

Writes `small` (8 products with a matrix of 256 x 256, 2 MB) and `wide` (2 with one of 4096 x 4096, 134 MB) beside
model_dir/digits into a temporary repository, and prints the table.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIGITS = Path(__file__).parents[1] / "model_dir" / "digits"


def save(repository: Path, name: str, width: int, products: int) -> None:
    """A model of so many products of its input with a square matrix, each followed by ReLU."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for at in range(products):
        matrix = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{at}"))
        out = "y" if at == products - 1 else f"r{at}"
        nodes += [helper.make_node("MatMul", [last, f"w{at}"], [f"h{at}"]), helper.make_node("Relu", [f"h{at}"], [out])]
        last = out
    tensors = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", width]) for tensor in ("x", "y")]
    graph = helper.make_graph(nodes, name, tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def main() -> int:
    """Run the command on the three models; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        save(repository, "small", 256, 8)
        save(repository, "wide", 4096, 2)
        (repository / "digits").symlink_to(DIGITS)
        command = [sys.executable, "-m", "efserve", "profile", "--pairs", "--model-repository", str(repository)]
        return subprocess.run([*command, "--output", f"{folder}/out", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
