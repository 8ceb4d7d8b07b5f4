"""The calls of TensorRT's Python library, versions 10 and 11, and nothing else. Never run on hardware so far.

Names and arguments checked in the source of the bindings of 10.0.1, 10.16 and 11.1. What differs: 11 has strongly typed
networks only, so that is what 10 is asked for, too; a model's precision is the precision of its file.
"""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from efserve.engines.shape_ranges import ShapeRange
from efserve.engines.tensorrt_plan import cannot_parse
from efserve.errors import InferenceFailed, LoadFailed
from efserve.tensors import Shape, TensorSpec

_OLDEST = 10
_TELL_S = 5.0  # between two words about progress
_DATATYPES = {  # name of a tensorrt.DataType -> v2 datatype
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}


@dataclass(frozen=True, slots=True)
class BuildTask:
    """What to build."""

    onnx_file: Path
    ranges: tuple[ShapeRange, ...]
    model: bytes | None = None  # in place of the file's own bytes, where its precision was changed
    timings: bytes = b""
    workspace_bytes: int = 0  # of the GPU's memory that tactics may use; 0: all


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives."""

    plan: bytes
    timings: bytes


class TensorRt:
    """The module `tensorrt`, or a stand-in with its classes."""

    def __init__(self, library: Any) -> None:
        self._trt = library
        self.version: str = library.__version__
        if int(self.version.partition(".")[0]) < _OLDEST:
            raise LoadFailed(f"TensorRT {self.version} is too old; the tensorrt engine needs {_OLDEST} or later")
        self._said: list[str] = []  # what it has told of errors
        self._logger = _logger(library, self._said)

    def build(self, task: BuildTask, tell: Callable[[str], object]) -> Built:
        """The plan of a task; LoadFailed with the operator that does not parse, or TensorRT's own reason."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parse(trt.OnnxParser(network, self._logger), task)
        config = builder.create_builder_config()
        is_given_up = threading.Event()
        monitor = _monitor(trt, tell, is_given_up)  # must outlive the build
        config.progress_monitor = monitor
        config.clear_flag(trt.BuilderFlag.TF32)  # which is on by itself: fp32 shall be fp32
        if task.workspace_bytes:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, task.workspace_bytes)
        cache = config.create_timing_cache(task.timings)
        if cache is None or not config.set_timing_cache(cache, False):  # of another machine or driver, or broken
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        profile = builder.create_optimization_profile()
        for each in task.ranges:
            profile.set_shape(each.name, each.least, each.best, each.most)
        config.add_optimization_profile(profile)
        self.forget()
        plan = _interruptible(lambda: builder.build_serialized_network(network, config), is_given_up)
        if plan is None:
            raise LoadFailed(f"TensorRT cannot build a plan of {task.onnx_file.name}: {self.said}")
        return Built(bytes(plan), bytes(cache.serialize()))

    def load(self, plan: bytes) -> "LoadedPlan | None":
        """The plan, ready to run; None where TensorRT refuses it, for the reason in `said`."""
        self.forget()
        runtime = self._trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return None
        return LoadedPlan(self._trt, runtime, engine, self)

    @property
    def said(self) -> str:
        """The last errors that it has logged, as one line."""
        return "; ".join(self._said[-3:]) or "it does not say why"

    def forget(self) -> None:
        """What was said so far is of no concern to what comes."""
        self._said.clear()

    def _parse(self, parser: Any, task: BuildTask) -> None:
        path = str(task.onnx_file)  # beside which the weights may lie
        parsed = parser.parse_from_file(path) if task.model is None else parser.parse(task.model, path)
        if not parsed:
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            told = [(error.node_operator(), error.node_name(), error.desc()) for error in errors]
            raise LoadFailed(cannot_parse(task.onnx_file, told))


class LoadedPlan:
    """A plan with an execution context, to be used by one thread; it runs when it has been given its scratch memory."""

    def __init__(self, trt: Any, runtime: Any, engine: Any, owner: TensorRt) -> None:
        self._engine = engine
        self._trt = trt
        self._owner = (runtime, owner)  # must outlive the engine
        owner.forget()
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise LoadFailed(f"TensorRT cannot make a context for the plan on the GPU: {owner.said}")
        size_bytes = getattr(engine, "device_memory_size_v2", None)  # since 10.1
        self.scratch_bytes = int(engine.device_memory_size if size_bytes is None else size_bytes)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(self._spec(name, "input") for name in names if is_input[name])
        self.outputs = tuple(self._spec(name, "output") for name in names if not is_input[name])
        profiled = {spec.name: engine.get_tensor_profile_shape(spec.name, 0) for spec in self.inputs}
        self.ranges = tuple(
            ShapeRange(name, *(tuple(shape) for shape in (least, best, most)))
            for name, (least, best, most) in profiled.items()
        )

    def another(self) -> "LoadedPlan":
        """The same plan with a context of its own, which needs its shapes, addresses and scratch memory set."""
        runtime, owner = self._owner
        return LoadedPlan(self._trt, runtime, self._engine, owner)

    def set_scratch(self, address: int) -> None:
        """Where `scratch_bytes` of the GPU's memory are, which contexts that never run side by side may share."""
        context = self._context
        for name in ("set_device_memory_v2", "set_device_memory"):  # of 11, and of 10 since 10.1
            if (give := getattr(context, name, None)) is not None:
                give(address, self.scratch_bytes)
                return
        context.device_memory = address

    def set_shape(self, name: str, shape: Shape) -> None:
        """The shape of an input from now on; InferenceFailed where the plan does not take it."""
        if not self._context.set_input_shape(name, shape):
            raise InferenceFailed(
                f"TensorRT does not take input '{name}' of shape {list(shape)}: {self._owner[1].said}"
            )

    def shape(self, name: str) -> Shape:
        """The shape of an output for the inputs' shapes; -1 where it depends on their values."""
        return tuple(self._context.get_tensor_shape(name))

    def set_address(self, name: str, address: int) -> None:
        """Where in the GPU's memory a tensor lies."""
        self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        """Start one run on a stream; OSError where TensorRT cannot."""
        if not self._context.execute_async_v3(stream):
            raise OSError(f"TensorRT could not start the run: {self._owner[1].said}")

    def close(self) -> None:
        """Free the context and the engine, in that order."""
        del self._context
        del self._engine

    def _spec(self, name: str, kind: str) -> TensorSpec:
        kind_name = self._engine.get_tensor_dtype(name).name
        if kind_name not in _DATATYPES:
            raise LoadFailed(f"{kind} '{name}' of the plan is {kind_name}, for which the v2 protocol has no datatype")
        return TensorSpec(name, _DATATYPES[kind_name], tuple(self._engine.get_tensor_shape(name)))


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the library
        """Keeps errors for our own messages; the rest is of no use to a user."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(" ".join(msg.split()))

    return Logger()


def _interruptible(build: Callable[[], Any], is_given_up: threading.Event) -> Any:
    """A build, of which Ctrl-C gives up the rest: in a thread, for no signal reaches Python within the library.

    In a worker, which ignores Ctrl-C and is killed where nobody wants it, it runs as it is. The thread has the primary
    context, as CUDA's runtime gives it to every thread that has none.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return build()
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        except BaseException:
            is_given_up.set()  # the pool waits until the library has noticed
            raise


def _monitor(trt: Any, tell: Callable[[str], object], is_given_up: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the library
        """Tells the outermost phases, which come from several threads of the builder."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, int] = {}
            self._told_s = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                now_s = monotonic()
                if now_s - self._told_s >= _TELL_S:
                    self._told_s = now_s
                    tell(f"builds its TensorRT plan: {phase_name}, step {step + 1} of {self._steps.get(phase_name, 0)}")
            return not is_given_up.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

    return Monitor()
