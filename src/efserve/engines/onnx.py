"""ONNX models by onnxruntime, on the CPU or a GPU.

Binding the session to shared memory halves the cost of a small batch and of the bytes of a large one (measured against
`session.run` and a copy), so static tensors are bound; strings and free output shapes take `session.run`. On a GPU they
are bound to the device's memory, and copied from and to shared memory, page-locked (`onnx_cuda.py`).
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from efserve.config import kept_forms
from efserve.engines import onnx_providers as providers
from efserve.engines.base import Remark, Source
from efserve.engines.cuda_device import DriverDevice
from efserve.engines.cuda_driver import CudaDriver
from efserve.engines.cuda_pins import Pins
from efserve.engines.onnx_cuda import Device, DeviceRuns
from efserve.engines.onnx_kept import disabled_optimizers, kept_session
from efserve.engines.shape_ranges import shape_ranges
from efserve.errors import InferenceFailed, LoadFailed
from efserve.libcuda import open_libcuda
from efserve.model_config import FileSignature, ModelConfig
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

_CAN_TELL = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
_ERRORS_ONLY = 3
_NOTHING = 4  # what goes wrong in a run is in the exception

_DATATYPES = {  # onnxruntime's name of a type -> v2 datatype, and its number in onnx.TensorProto
    "tensor(bool)": ("BOOL", 9),
    "tensor(uint8)": ("UINT8", 2),
    "tensor(uint16)": ("UINT16", 4),
    "tensor(uint32)": ("UINT32", 12),
    "tensor(uint64)": ("UINT64", 13),
    "tensor(int8)": ("INT8", 3),
    "tensor(int16)": ("INT16", 5),
    "tensor(int32)": ("INT32", 6),
    "tensor(int64)": ("INT64", 7),
    "tensor(float16)": ("FP16", 10),
    "tensor(bfloat16)": ("BF16", 16),
    "tensor(float)": ("FP32", 1),
    "tensor(double)": ("FP64", 11),
    "tensor(string)": ("BYTES", 8),
}
_ELEMENT_TYPES = dict(_DATATYPES.values())


class OnnxEngine:
    """One inference session; on a GPU with its device, and pins for shared memory."""

    warmup_runs = 1

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: ModelConfig,
        signature: FileSignature,
        remarks: Sequence[Remark] = (),
        device: Device | None = None,
        pins: Pins | None = None,
    ) -> None:
        self.config = config
        self._remarks = remarks
        self._runs = DeviceRuns(session, device) if device is not None else None
        self._pins = pins
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._session = session
        self._input_names = [spec.name for spec in config.inputs]
        self._output_names = [spec.name for spec in config.outputs]
        datatypes = {spec.datatype for spec in (*config.inputs, *config.outputs)}
        self._can_bind = "BYTES" not in datatypes and _has_static_outputs(config, signature)
        self._string_inputs = [index for index, spec in enumerate(config.inputs) if spec.datatype == "BYTES"]
        self._needs_pointers = "BF16" in datatypes  # numpy has no such dtype

    @property
    def device_ns(self) -> int:
        """How long the GPU computed in the last run, copies not counted; 0 where tensors are not bound, and on CPUs."""
        return self._runs.device_ns if self._runs is not None else 0

    @property
    def remarks(self) -> Sequence[Remark]:
        """Which provider runs the nodes, and whether the GPU copies at its best."""
        if self._pins is None or not self._pins.problem:
            return self._remarks
        return (*self._remarks, Remark(f"copies to the GPU are slower than they could be: {self._pins.problem}", True))

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the session; outputs are new arrays."""
        if self._runs is None:
            return self._infer(inputs)
        return self._runs.checked(partial(self._infer, inputs))

    def _infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        if self._needs_pointers:
            return self._infer_by_pointers(inputs)
        feed = dict(zip(self._input_names, inputs, strict=True))
        for index in self._string_inputs:
            feed[self._input_names[index]] = _as_text(self._input_names[index], inputs[index])
        outputs: Sequence[Array] = self._session.run(self._output_names, feed)
        return outputs

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """Bind static tensors; the arrays must live as long as the call."""
        if not self._can_bind or any(array.size == 0 for array in (*inputs, *outputs)):
            return None
        if self._pins is not None:
            self._pins.ensure((*inputs, *outputs))
        if self._runs is not None:
            return self._runs.bind(_tensors(self.config.inputs, inputs), _tensors(self.config.outputs, outputs))
        binding = self._bound_inputs(inputs)
        for spec, array in zip(self.config.outputs, outputs, strict=True):
            binding.bind_output(spec.name, "cpu", 0, _ELEMENT_TYPES[spec.datatype], array.shape, array.ctypes.data)
        return partial(self._session.run_with_iobinding, binding)

    def close(self) -> None:
        """End the session, which uses the device's stream, then give back what it used."""
        del self._session
        if self._pins is not None:
            self._pins.release()
        if self._runs is not None:
            self._runs.close()

    def _bound_inputs(self, inputs: Sequence[Array]) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for spec, array in zip(self.config.inputs, inputs, strict=True):
            binding.bind_input(spec.name, "cpu", 0, _ELEMENT_TYPES[spec.datatype], array.shape, array.ctypes.data)
        return binding

    def _infer_by_pointers(self, inputs: Sequence[Array]) -> list[Array]:
        binding = self._bound_inputs(inputs)
        for name in self._output_names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return [_copy_of(value, spec) for value, spec in zip(binding.get_outputs(), self.config.outputs, strict=True)]


def load(source: Source) -> OnnxEngine:
    """A session over `model.onnx` on the partition's device, with as many threads as the partition has."""
    names = providers.wanted(source.partition, source.config.parameters, source.config.name)
    providers.check_there(names, onnxruntime.get_available_providers(), onnxruntime.__version__)
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    device, pins = _device() if source.partition.is_gpu else (None, None)
    session = _open(source, names, device)
    providers.check_taken(names, session.get_providers())
    if cores := source.partition.thread_cores:  # the others have theirs from the session's options
        os.sched_setaffinity(0, cores[:1])
    nodes = providers.assignment(session)
    if source.strict_provider:
        providers.refuse_cpu(nodes, names)
    stated = {spec.name for spec in source.config.outputs}
    outputs = [node for node in session.get_outputs() if not stated or node.name in stated or node.type in _DATATYPES]
    signature = FileSignature(_specs(session.get_inputs(), "input"), _specs(outputs, "output"))
    remarks = (providers.remark(nodes, names, onnxruntime.__version__),)
    return OnnxEngine(session, source.settle(signature), signature, remarks, device, pins)


def _device() -> tuple[Device, Pins]:
    """The process's GPU with a stream, which the session is to use, and what page-locks memory for it."""
    libcuda = open_libcuda()
    driver = CudaDriver(libcuda)  # which makes a context current
    return DriverDevice(libcuda), Pins(driver)


def _open(source: Source, names: Sequence[str], device: Device | None) -> onnxruntime.InferenceSession:
    """On the CPU a session over the optimized graph of an earlier load, where there is one or it can be kept."""
    path = source.file("model.onnx")
    options = partial(_options, source)
    if source.keeps and not source.partition.is_gpu and (session := kept_session(path, source, options)):
        return session
    return onnxruntime.InferenceSession(
        str(path),
        options(),
        providers=_with_options(names, source, device.stream if device is not None else 0),
        disabled_optimizers=disabled_optimizers(path, source.config),
    )


def _options(source: Source) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, source.partition.threads)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _NOTHING
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if source.spin else "0")
    if cores := source.partition.thread_cores:  # counted from 1; the first is for the thread that runs the session
        others = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    options.add_session_config_entry(providers.RECORD, "1")
    if source.strict_provider and source.partition.is_gpu:
        options.add_session_config_entry(providers.NO_CPU, "0" if _CAN_TELL else "1")
    return options


def _with_options(names: Sequence[str], source: Source, stream: int) -> providers.Providers:
    config = source.config
    ranges = shape_ranges(config) if providers.TENSORRT in names and config.inputs else ()
    precision = config.parameters.get("precision", "")
    cache = kept_forms().user_folder / "onnxruntime-tensorrt"  # not beside the model: what is found there is run
    if providers.TENSORRT in names:
        cache.mkdir(parents=True, exist_ok=True)
    return providers.with_options(names, source.partition, ranges, precision, cache, stream)


def _specs(nodes: Sequence[onnxruntime.NodeArg], kind: str) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        if node.type not in _DATATYPES:
            raise LoadFailed(f"{kind} '{node.name}' is a {node.type}, for which the v2 protocol has no datatype")
        dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
        specs.append(TensorSpec(node.name, _DATATYPES[node.type][0], dims))
    return tuple(specs)


def _tensors(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[tuple[str, int, Array]]:
    return [(spec.name, _ELEMENT_TYPES[spec.datatype], array) for spec, array in zip(specs, arrays, strict=True)]


def _has_static_outputs(config: ModelConfig, signature: FileSignature) -> bool:
    in_file = {spec.name: spec.dims[1 if config.batches else 0 :] for spec in signature.outputs}
    return all(dim >= 0 for spec in config.outputs for dim in in_file[spec.name])


def _as_text(name: str, array: npt.NDArray[Any]) -> Array:
    texts = np.empty(array.shape, np.object_)
    try:
        texts.ravel()[:] = [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise InferenceFailed(f"input '{name}': onnxruntime takes strings in UTF-8 only, {error}") from error
    return texts


def _copy_of(value: onnxruntime.OrtValue, spec: TensorSpec) -> Array:
    if spec.datatype != "BF16":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    data = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    return np.frombuffer(data, NUMPY_DTYPES["BF16"]).reshape(shape)
