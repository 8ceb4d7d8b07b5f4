"""What the benchmark scripts share: models made on the spot, a running server, wrk as the client."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WRK_SCRIPT = """
local f = io.open(os.getenv("BODY"), "rb"); wrk.body = f:read("*all"); f:close()
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.headers["Inference-Header-Content-Length"] = os.getenv("HEAD_BYTES")
function done(s, l, r)
  local failed = s.errors.status + s.errors.read + s.errors.timeout + s.errors.connect
  local rate = s.requests / (s.duration / 1e6)
  io.write(string.format("RESULT %f %f %f %d %d\\n", rate, l:percentile(50), l:percentile(99), failed, s.requests))
end
"""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk measured in one run."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    errors: int
    requests: int


@dataclass(frozen=True, slots=True)
class Server:
    """A running `efserve serve`."""

    url: str
    grpc: str  # HOST:PORT
    pid: int
    ready_s: float
    worker_pids: tuple[int, ...]


def make_identity(root: Path, name: str = "identity", dims: Sequence[int | str] = (16,), max_batch: int = 8) -> None:
    """A model that returns its input [batch, *dims]; a string in `dims` is a free dimension."""
    shape = ["n", *dims]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    _save(root, name, graph, max_batch)


def make_first_value(root: Path, name: str, dims: Sequence[int | str], max_batch: int = 8) -> None:
    """A model that returns one value per row of its input [batch, *dims]: large requests, small answers."""
    axes = numpy_helper.from_array(np.arange(1, len(dims) + 1), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["input", "axes"], ["output"], keepdims=0)],
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *dims])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n"])],
        [axes],
    )
    _save(root, name, graph, max_batch)


def make_cnn(root: Path, name: str = "cnn", max_batch: int = 8) -> Path:
    """conv 3x3x32, conv 3x3x64, pool, 9216-128-10 on [batch, 1, 28, 28]; random weights."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.standard_normal(shape) * 0.05).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"]),
        helper.make_node("Relu", ["g"], ["r3"]),
        helper.make_node("Gemm", ["r3", "w4", "b4"], ["output"]),
    ]
    weights = [weight("w1", 32, 1, 3, 3), weight("b1", 32), weight("w2", 64, 32, 3, 3), weight("b2", 64)]
    weights += [weight("w3", 9216, 128), weight("b3", 128), weight("w4", 128, 10), weight("b4", 10)]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    return _save(root, name, graph, max_batch)


def make_convolutions(root: Path, name: str, dims: Sequence[int], layers: int, channels: int = 0) -> Path:
    """`layers` convolutions 3x3 with `channels` (0: those of the input) over [batch, *dims]; answers their means."""
    random = np.random.default_rng(0)
    channels = channels or dims[0]
    nodes, weights, tensor = [], [], "input"
    for layer in range(layers):
        shape = (channels, channels if layer else dims[0], 3, 3)
        weights.append(numpy_helper.from_array((random.standard_normal(shape) * 0.05).astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [tensor, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        tensor = f"r{layer}"
    nodes += [helper.make_node("GlobalAveragePool", [tensor], ["p"]), helper.make_node("Flatten", ["p"], ["output"])]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *dims])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", channels])],
        weights,
    )
    return _save(root, name, graph, max_batch=8)


def _save(root: Path, name: str, graph: onnx.GraphProto, max_batch: int) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))
    (root / name / "config.pbtxt").write_text(f"max_batch_size: {max_batch}\ndynamic_batching {{ }}\n")
    return path


def write_request(path: Path, shape: Sequence[int], seed: int = 0) -> int:
    """Writes the body of a binary request with a random FP32 tensor; answers the length of its JSON head."""
    tensor = np.random.default_rng(seed).standard_normal(shape, np.float32)
    spec = {
        "name": "input",
        "shape": list(shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    head = json.dumps({"inputs": [spec], "parameters": {"binary_data_output": True}}).encode()
    path.write_bytes(head + tensor.tobytes())
    return len(head)


@contextlib.contextmanager
def serving(root: Path, *options: str) -> Iterator[Server]:
    """`efserve serve` on free ports with the models of `root`, ready; ended with the block."""
    ready = Path(tempfile.mkdtemp(prefix="efserve-")) / "ready.json"
    command = [sys.executable, "-m", "efserve", "serve", "--model-repository", str(root), "--http-port", "0"]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--ready-file", str(ready), "--exit-on-error", *options]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while not ready.exists():
            if process.poll() is not None:
                sys.exit(f"the server did not start: {process.communicate()[1].decode()}")
            time.sleep(0.005)
        ready_s = time.monotonic() - started
        status = json.loads(ready.read_text())
        lists = Path(f"/proc/{process.pid}/task").glob("*/children")  # of the thread that started them
        children = tuple(int(pid) for each in lists for pid in each.read_text().split())
        yield Server(status["http"], status["grpc"], process.pid, ready_s, children)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        shutil.rmtree(ready.parent)


@contextlib.contextmanager
def bare_server(answer_bytes: int) -> Iterator[str]:
    """The reference for small tensors: uvloop and httptools with a constant answer."""
    script = Path(__file__).with_name("bare_server.py")
    process = subprocess.Popen([sys.executable, str(script), str(answer_bytes)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def wrk(url: str, body: Path, head_bytes: int, connections: int, seconds: int) -> WrkResult:
    """One run of wrk with one thread; exits with a word where wrk is not installed."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    script = body.with_name("post.lua")
    script.write_text(WRK_SCRIPT)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    environment = {"BODY": str(body), "HEAD_BYTES": str(head_bytes), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    fields = next(line for line in printed.splitlines() if line.startswith("RESULT")).split()[1:]
    return WrkResult(float(fields[0]), float(fields[1]), float(fields[2]), int(fields[3]), int(fields[4]))


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20
