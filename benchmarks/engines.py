"""Each CPU engine in a worker beside its runtime called directly in a loop: what the worker adds to an inference.

    python benchmarks/engines.py [--models cnn,resnet18,resnet50] [--engines onnx,torchscript,openvino] [--rounds 15]
        [--repository FOLDER]    keeps the models there for the next run

A worker process of efserve (batches in shared memory, one running and one waiting, so that it never sleeps; the time
that the worker itself takes for one) and a plain Python process that calls the runtime in a loop take turns, on
one engine thread each, on the same input, for a fraction of a second. A ratio is the median over the rounds' own
ratios, worker / direct; "quiet" compares the 25th percentiles of all runs, since what else runs on the machine only
adds. Weights are random: they do not matter here.
"""

import argparse
import asyncio
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from efserve.converter.convert import convert, convert_torch
from efserve.converter.job import ConvertJob
from efserve.converter.torch_model import TorchModel
from efserve.inference import InferRequest
from efserve.partition import Partition
from efserve.partitions.cpu import environment
from efserve.profiler.sampling import Feeder
from efserve.profiler.workers import started
from efserve.repository import scan
from efserve.tensors import TensorSpec
from efserve.worker.spec import WorkerSpec

ENGINES, MODELS, BATCHES = ("onnx", "torchscript", "openvino"), ("cnn", "resnet18", "resnet50"), (1, 8)
TURN_S = 0.25  # of one side
MOST_RUNS = 500  # in a turn
SHAPES = {"cnn": (1, 28, 28), "resnet18": (3, 224, 224), "resnet50": (3, 224, 224)}


def direct(engine: str, path: str, rows: int, name: str) -> None:
    """Each line on stdin is a number of runs, answered by their times in ms as JSON: the runtime, and nothing else."""
    shared, control = mmap.mmap(int(sys.argv[-2]), 0), socket.socket(fileno=int(sys.argv[-1]))
    data = np.random.default_rng(0).standard_normal((rows, *SHAPES[name]), np.float32)
    array = np.frombuffer(shared, np.float32, data.size).reshape(data.shape)
    array[:] = data
    run = {"onnx": onnx_loop, "torchscript": torchscript_loop, "openvino": openvino_loop}[engine](path, array)
    for _ in range(5):
        run()
    for line in sys.stdin:
        is_fed, runs = json.loads(line)
        times = []
        for _ in range(runs):
            if is_fed:
                control.recv(64)
            begun = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begun))
            if is_fed:
                control.send(b"done")
        print(json.dumps(times), flush=True)


def onnx_loop(path: str, array: Any) -> Callable[[], object]:
    """`InferenceSession.run`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: array}
    return lambda: session.run(None, feed)


def torchscript_loop(path: str, array: Any) -> Callable[[], object]:
    """The module, optimized for inference as libtorch can; without that it would be slower."""
    torch.set_num_threads(1)
    module = torch.jit.optimize_for_inference(torch.jit.load(path).eval())  # type: ignore[no-untyped-call]  # torch
    tensor = torch.from_numpy(array)

    def run() -> object:
        with torch.inference_mode():
            return [module(tensor).numpy()]

    return run


def openvino_loop(path: str, array: Any) -> Callable[[], object]:
    """An infer request on the array itself."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
    return lambda: request.infer()


class Direct:
    """The other side: a process that lives as long as the block."""

    def __init__(
        self, process: "subprocess.Popen[str]", data: bytes, shared: mmap.mmap, control: socket.socket
    ) -> None:
        self._process = process
        self._data = data
        self._shared = shared
        self._control = control

    def times_ms(self, runs: int) -> list[float]:
        """The times of so many runs."""
        self._ask(False, runs)
        return self._answer()

    def fed_ms(self, runs: int) -> list[float]:
        """The same where each run is asked for, one ahead, and its input and answer copied meanwhile."""
        self._ask(True, runs)
        for sent in range(runs + 1):
            if sent < runs:
                self._shared[: len(self._data)] = self._data
                self._control.send(b"run")
            if sent:
                self._control.recv(64)
                bytes(self._shared[:1024])
        return self._answer()

    def _ask(self, is_fed: bool, runs: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([is_fed, runs])}\n")
        self._process.stdin.flush()

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        found: list[float] = json.loads(self._process.stdout.readline())
        return found


@contextmanager
def direct_process(engine: str, path: Path, rows: int, name: str, data: bytes) -> Iterator[Direct]:
    """The runtime in a process with the environment of a worker."""
    memory = os.memfd_create("engines")
    os.ftruncate(memory, max(len(data), 4096))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, __file__, "--direct", engine, str(path), str(rows), name]
    process = subprocess.Popen(
        [*words, str(memory), str(theirs.fileno())],
        env=environment(Partition(threads=1)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(memory, theirs.fileno()),
        start_new_session=True,  # as a worker: Linux may share the processor out by sessions
    )
    theirs.close()
    with process, ours:
        try:
            yield Direct(process, data, mmap.mmap(memory, 0), ours)
        finally:
            os.close(memory)
            assert process.stdin is not None
            process.stdin.close()


async def compare(repository: Path, name: str, engine: str, rows: int, rounds: int) -> None:
    """One line of the table."""
    (folder,) = scan([repository], [name]).models
    version = folder.resolve(1, engine)
    spec = WorkerSpec(version.config, "1", version.folder, engine, Partition(threads=1), max_batch=8)
    data = np.random.default_rng(0).standard_normal((rows, *SHAPES[name]), np.float32).tobytes()
    request = InferRequest((data,), ((rows, *SHAPES[name]),), rows, "", lambda outcome: None)
    file = version.folder / folder.filename(engine)
    async with started(spec) as (worker, _, feeder):
        with direct_process(engine, file, rows, name, data) as other:
            runs = await runs_in_a_turn(feeder, worker, request, other)
            mine, theirs = list[float](), list[float]()
            ratios, to_fed = [], []
            for _ in range(rounds):
                batches = await feeder.feed(worker, request, 2, runs, 0.0)
                spans, times = [batch.span_ms for batch in batches], other.times_ms(runs)
                ratios.append(statistics.median(spans) / statistics.median(times))
                to_fed.append(statistics.median(spans) / statistics.median(other.fed_ms(runs)))
                mine += spans
                theirs += times
    quiet = float(np.percentile(mine, 25) / np.percentile(theirs, 25))
    print(
        f"{engine:12} {name:9} {rows:5} {statistics.median(mine):10.3f} {statistics.median(theirs):10.3f} "
        f"{statistics.median(ratios):7.3f} {quiet:7.3f} {statistics.median(to_fed):7.3f}",
        flush=True,
    )


async def runs_in_a_turn(feeder: Feeder, worker: Any, request: InferRequest, other: Direct) -> int:
    """As many as fit, on either side; both are warm afterwards."""
    batches = await feeder.feed(worker, request, 2, 5, 0.0)
    slowest = max(min(batch.span_ms for batch in batches), min(other.times_ms(5)))
    return max(3, min(MOST_RUNS, int(1e3 * TURN_S / slowest)))


def make_models(repository: Path, names: list[str]) -> None:
    """Both files of each model, with random weights."""
    for name in names:
        job = ConvertJob(name, repository, weights="none", max_batch=8)
        if name == "cnn":
            spec = TensorSpec("input", "FP32", SHAPES[name])
            convert_torch(TorchModel(cnn().eval(), (spec,)), job, lambda step: None)
        else:
            convert(job, lambda step: None)


def cnn() -> nn.Module:
    """The CNN of benchmarks/serving.py."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10))


def main() -> None:
    """Parses the options, makes the models, prints the table."""
    if sys.argv[1:2] == ["--direct"]:
        engine, path, count, name = sys.argv[2:6]
        direct(engine, path, int(count), name)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repository", type=Path, help="Where the models are kept, made if they are not there.")
    options = parser.parse_args()
    names = options.models.split(",")
    with tempfile.TemporaryDirectory(prefix="efserve-") as temporary:
        repository = options.repository or Path(temporary)
        make_models(repository, [name for name in names if not (repository / name).exists()])
        heads = ("worker ms", "direct ms", "ratio", "quiet", "to fed")
        print(f"{'engine':12} {'model':9} {'batch':>5} " + "{:>10} {:>10} {:>7} {:>7} {:>7}".format(*heads), flush=True)
        for engine in options.engines.split(","):
            for name in names:
                for rows in BATCHES:
                    asyncio.run(compare(repository, name, engine, rows, options.rounds))


if __name__ == "__main__":
    main()
