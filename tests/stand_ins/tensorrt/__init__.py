"""Stand-in for TensorRT: a "plan" holds its ONNX file, and onnxruntime runs it.

Classes, methods and names of arguments are those of the bindings' source (python/src/infer/pyCore.cpp and
python/src/parsers/pyOnnx.cpp of NVIDIA's TensorRT 11.1, and their documentation for 10.0 to 11.4). The environment
plays what differs: STAND_IN_TENSORRT is the version, STAND_IN_UNSUPPORTED the operators that it does not parse,
STAND_IN_STEP_S how long each node of a graph takes to build.
"""

import ctypes
import enum
import os
import pickle
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = os.environ.get("STAND_IN_TENSORRT", "11.1.0.106")

_MAGIC = b"stand-in plan"
_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.BOOL: "BOOL",
}
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "UINT8": "u1", "BOOL": "?"}

DataType = enum.Enum("DataType", "FLOAT HALF FP8 BF16 INT8 INT32 INT64 UINT8 BOOL INT4")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
BuilderFlag = enum.Enum("BuilderFlag", "DEBUG TF32 REFIT")  # 10 has those of the precisions as well, 11 has not


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """Behind EXPLICIT_BATCH in 10; the first in 11, where it is deprecated and there all the same."""

    STRONGLY_TYPED = 1 if __version__.startswith("10.") else 0


class ILogger:
    """Where the library writes to; made for subclasses, which must call `__init__`."""

    class Severity(enum.IntEnum):
        """The smaller, the worse."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        """To be overridden."""
        raise NotImplementedError


class IProgressMonitor:
    """Made for subclasses."""

    def __init__(self) -> None:
        self.is_made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """To be overridden."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """To be overridden."""
        return True

    def phase_finish(self, phase_name: str) -> None:
        """To be overridden."""


class IHostMemory(bytes):
    """Bytes that the library owns."""


class INetworkDefinition:
    """What a parser fills."""

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None


class ParserError:
    """One error; everything is a method."""

    def __init__(self, node: onnx.NodeProto | None, desc: str) -> None:
        self._node = node
        self._desc = desc

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""

    def desc(self) -> str:
        return self._desc


class OnnxParser:
    """Reads ONNX."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        return self._take(onnx.load(model))

    def parse(self, model: bytes, path: str | None = None) -> bool:
        return self._take(onnx.load_from_string(bytes(model)))

    def _take(self, model: onnx.ModelProto) -> bool:
        unsupported = os.environ.get("STAND_IN_UNSUPPORTED", "").split(",")
        self._errors = [
            ParserError(
                node, f"Plugin not found,\n  are the plugin name, version, and namespace of {node.op_type} correct?"
            )
            for node in model.graph.node
            if node.op_type in unsupported
        ]
        self._network.model = model
        return not self._errors


class IOptimizationProfile:
    """Ranges of shapes."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    """Measurements, which are bytes to everybody."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data)

    def combine(self, input_cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        return True


class IBuilderConfig:
    """How to build."""

    def __init__(self) -> None:
        self.progress_monitor: IProgressMonitor | None = None
        self.profiles: list[IOptimizationProfile] = []
        self.limits: dict[MemoryPoolType, int] = {}
        self.flags = {BuilderFlag.TF32}
        self.cache: ITimingCache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not cache.data or cache.data.startswith(b"timings of ")

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    """Builds plans."""

    def __init__(self, logger: ILogger) -> None:
        assert logger.is_made
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        monitor, model = config.progress_monitor, network.model
        assert monitor is not None
        assert monitor.is_made
        assert model is not None
        if not network.flags & 2 and __version__.startswith("10."):
            self._logger.log(ILogger.Severity.ERROR, "IBuilder::buildSerializedNetwork: this stand-in is strict")
            return None
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactic Selection", "Building Engine", len(model.graph.node))
        for step in range(len(model.graph.node)):
            threading.Event().wait(float(os.environ.get("STAND_IN_STEP_S", "0")))
            if not monitor.step_complete("Tactic Selection", step):
                return None
        monitor.phase_finish("Tactic Selection")
        monitor.phase_finish("Building Engine")
        assert config.cache is not None
        config.cache.data = b"timings of " + __version__.encode()
        return IHostMemory(_MAGIC + pickle.dumps((__version__, model.SerializeToString(), config.profiles[0].shapes)))


class Runtime:
    """Loads plans."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        data = bytes(serialized_engine)
        if not data.startswith(_MAGIC):
            self._logger.log(ILogger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization")
            return None
        version, model, shapes = pickle.loads(data.removeprefix(_MAGIC))
        if version != __version__:
            text = "the engine plan file is not compatible with this version of TensorRT"
            said = f"{text}, expecting {__version__} got {version}"
            self._logger.log(ILogger.Severity.ERROR, said)
            return None
        return ICudaEngine(self._logger, onnx.load_from_string(model), shapes)


class ICudaEngine:
    """A plan."""

    def __init__(self, logger: ILogger, model: onnx.ModelProto, shapes: dict[str, tuple[tuple[int, ...], ...]]) -> None:
        self.logger = logger
        self.model = model
        self.profile = shapes
        self.tensors = [*model.graph.input, *model.graph.output]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in {each.name for each in self.model.graph.input} else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_TYPES[self._tensor(name).elem_type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._tensor(name).shape.dim)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return list(self.profile[name])

    device_memory_size = device_memory_size_v2 = 4096

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext":
        return IExecutionContext(self, strategy)

    def _tensor(self, name: str) -> Any:
        return next(each for each in self.tensors if each.name == name).type.tensor_type


class IExecutionContext:
    """Runs a plan."""

    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self._engine = engine
        self._has_memory = strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        self._session = onnxruntime.InferenceSession(
            engine.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        self._has_memory = bool(memory) and size >= self._engine.device_memory_size_v2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.profile[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        else:
            said = f"IExecutionContext::setInputShape: {name} is out of range"
            self._engine.logger.log(ILogger.Severity.ERROR, said)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        rows = next(iter(self._shapes.values()))[0]
        shape = self._engine.get_tensor_shape(name)
        return (rows if shape[0] < 0 else shape[0], *shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> None:
        self._addresses[name] = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._has_memory:
            said = "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (no device memory was set)"
            self._engine.logger.log(ILogger.Severity.ERROR, said)
            return False
        feeds = {}
        for name, shape in self._shapes.items():
            dtype = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name).name])
            data = ctypes.string_at(self._addresses[name], dtype.itemsize * int(np.prod(shape)))
            feeds[name] = np.frombuffer(data, dtype).reshape(shape)
        names = [output.name for output in self._engine.model.graph.output]
        for name, array in zip(names, self._session.run(names, feeds), strict=True):
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return True
