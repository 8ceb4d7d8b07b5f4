"""Thread settings of the CPU engines' runtimes: what each costs and gains alone, in turns, and two processes at once.

    python benchmarks/threads.py --repository FOLDER [--engines onnx,torchscript,openvino] [--models cnn,resnet18]
        [--settings "1 thread;2, sleep"]

A process for each setting calls the runtime itself; all take turns, each for a fraction of a second:

- "alone": one process, one call after the other;
- "gaps": one process that sleeps between calls, as between requests, for twice as long as a call takes;
- "two": two processes of the same setting at once, one call after the other, as two workers of a busy server;
- "two, gaps": both of them with sleeps.

p50 and p99 are of a call, in ms; rate is calls/s of all processes; CPU is processor time per call, in ms. The models
are those of benchmarks/engines.py, made in FOLDER where they are not there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efserve.partition import Partition
from efserve.partitions.cpu import environment
from engines import SHAPES, make_models

TURN_S = 0.4
SPIN = "session.intra_op.allow_spinning"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {  # engine -> name -> what it says to the runtime
    "onnx": {
        "1 thread": {"threads": 1},
        "2, sleep": {"threads": 2, SPIN: "0"},
        "2, spin": {"threads": 2, SPIN: "1"},
    },
    "torchscript": {
        "1 thread": {"threads": 1},
        "2, sleep": {"threads": 2},
        "2, spin": {"threads": 2, "spin": True},
        "2, spin shortly": {"threads": 2, "environment": {"GOMP_SPINCOUNT": "10000"}},
        "1, no denormals": {"threads": 1, "flush": True},
        "1, no oneDNN": {"threads": 1, "onednn": False},
    },
    "openvino": {
        "1 thread": {"threads": 1},
        "2, latency": {"threads": 2},
        "2, pinned": {"threads": 2, "ENABLE_CPU_PINNING": True},
        "2, throughput": {"threads": 2, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "AUTO"},
    },
}
MODES = {"alone": (1, False), "gaps": (1, True), "two": (2, False), "two, gaps": (2, True)}


def play(engine: str, path: str, name: str, setting: dict[str, Any]) -> None:
    """Each line on stdin is a gap in s, answered by the times of calls in ms and the processor time in s, as JSON."""
    array = np.random.default_rng(0).standard_normal((1, *SHAPES[name]), np.float32)
    run = {"onnx": onnx_call, "torchscript": torchscript_call, "openvino": openvino_call}[engine](path, array, setting)
    for _ in range(5):
        run()
    for line in sys.stdin:
        gap_s, times = float(line), []
        cpu_s, end_s = time.process_time(), time.perf_counter() + TURN_S
        while (begun_s := time.perf_counter()) < end_s:
            run()
            times.append(1e3 * (time.perf_counter() - begun_s))
            if gap_s:
                time.sleep(gap_s)
        print(json.dumps([times, time.process_time() - cpu_s]), flush=True)


def onnx_call(path: str, array: Any, setting: dict[str, Any]) -> Callable[[], object]:
    """`InferenceSession.run`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting["threads"]
    options.inter_op_num_threads = 1
    if SPIN in setting:
        options.add_session_config_entry(SPIN, setting[SPIN])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: array}
    return lambda: session.run(None, feed)


def torchscript_call(path: str, array: Any, setting: dict[str, Any]) -> Callable[[], object]:
    """The module, optimized for inference."""
    import torch

    torch.set_num_threads(setting["threads"])
    torch.set_num_interop_threads(1)
    torch.set_flush_denormal(setting.get("flush", False))
    has_onednn = setting.get("onednn", True)
    torch.backends.mkldnn.enabled = has_onednn
    module = torch.jit.load(path).eval()  # type: ignore[no-untyped-call]  # torch
    module = torch.jit.optimize_for_inference(module) if has_onednn else torch.jit.freeze(module)
    tensor = torch.from_numpy(array)

    def run() -> object:
        with torch.inference_mode():
            return module(tensor)

    return run


def openvino_call(path: str, array: Any, setting: dict[str, Any]) -> Callable[[], object]:
    """An infer request on the array itself."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": setting["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        **{key: value for key, value in setting.items() if key != "threads"},
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
    return lambda: request.infer()


@dataclass(slots=True)
class Tally:
    """What came of one setting in one mode."""

    times_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def line(self) -> str:
        """p50, p99, calls/s, processor time per call."""
        low, high = np.percentile(self.times_ms, (50, 99))
        count = len(self.times_ms)
        return f"{low:9.3f} {high:9.3f} {count / self.wall_s:9.1f} {1e3 * self.cpu_s / count:9.3f}"


@contextmanager
def player(engine: str, path: Path, name: str, setting: dict[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    """A process that plays a setting, warm."""
    words = [sys.executable, "-W", "ignore", __file__, "--play", engine, str(path), name, json.dumps(setting)]
    own = environment(Partition(threads=setting["threads"]), spin=setting.get("spin", False))
    own |= setting.get("environment", {})
    with subprocess.Popen(
        words, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        turn([process], 0.0)
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def turn(processes: list["subprocess.Popen[str]"], gap_s: float) -> list[tuple[list[float], float]]:
    """Each at once: times in ms and processor time in s."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{gap_s}\n")
        process.stdin.flush()
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(tuple(json.loads(process.stdout.readline())))
    return answers


def compare(engine: str, path: Path, name: str, settings: dict[str, dict[str, Any]], rounds: int) -> None:
    """The lines of one engine and model."""
    tallies = {(setting, mode): Tally() for mode in MODES for setting in settings}
    with ExitStack() as stack:
        pairs = {
            key: [stack.enter_context(player(engine, path, name, setting)) for _ in range(2)]
            for key, setting in settings.items()
        }
        call_s = min(min(turn(pair[:1], 0.0)[0][0]) for pair in pairs.values()) / 1e3
        for _ in range(rounds):
            for (setting, mode), tally in tallies.items():
                count, has_gaps = MODES[mode]
                for times, cpu_s in turn(pairs[setting][:count], 2 * call_s if has_gaps else 0.0):
                    tally.times_ms += times
                    tally.cpu_s += cpu_s
                tally.wall_s += TURN_S
    for (setting, mode), tally in tallies.items():
        print(f"{engine:12} {name:9} {mode:10} {setting:16} {tally.line()}", flush=True)


def main() -> None:
    """Parses the options and prints the table."""
    if sys.argv[1:2] == ["--play"]:
        engine, path, name, setting = sys.argv[2:]
        play(engine, path, name, json.loads(setting))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--engines", default=",".join(SETTINGS))
    parser.add_argument("--models", default="cnn,resnet18")
    parser.add_argument("--settings", default="", help="Only these, with ; between.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = options.models.split(",")
    make_models(options.repository, [name for name in names if not (options.repository / name).exists()])
    heads = ("p50 ms", "p99 ms", "rate", "CPU ms")
    print(f"{'engine':12} {'model':9} {'mode':10} {'setting':16} " + " ".join(f"{head:>9}" for head in heads))
    print(f"(on {len(os.sched_getaffinity(0))} cores)")
    for engine in options.engines.split(","):
        wanted = options.settings.split(";") if options.settings else list(SETTINGS[engine])
        settings = {name: SETTINGS[engine][name] for name in wanted if name in SETTINGS[engine]}
        for name in names:
            path = options.repository / name / "1" / ("model.pt" if engine == "torchscript" else "model.onnx")
            compare(engine, path, name, settings, options.rounds)


if __name__ == "__main__":
    main()
