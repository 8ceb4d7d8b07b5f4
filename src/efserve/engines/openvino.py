"""ONNX models on the CPU by OpenVINO.

One compiled model takes every batch size: measured with resnet50, a free batch dimension is as fast as a fixed one, and
each size is prepared when it first runs, in the warm-up. What was compiled is kept and mapped by the next load. The
config's parameter `precision` chooses fp32, which is the default, or bf16; inputs and outputs stay as they are.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from efserve.engines.base import Remark, Source
from efserve.engines.kept import Recipe, Shelf
from efserve.errors import ConfigError, LoadFailed
from efserve.foreign import foreign
from efserve.model_config import FileSignature, ModelConfig
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

_FILE = "model.blob"
_DATATYPES = {  # OpenVINO's name of a type -> v2 datatype
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}
_TYPES = {datatype: getattr(ov.Type, name) for name, datatype in _DATATYPES.items()}
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}  # fp16 and int8 are in the file itself


@dataclass(frozen=True, slots=True)
class _Compiled:
    model: Any
    mapped: Array | None = None  # the kept form, which must stay as long as the model


class OpenVinoEngine:
    """One compiled model and its one request, which is pointed at the tensors of each run."""

    device_ns = 0
    warmup_runs = 1

    def __init__(
        self, compiled: _Compiled, config: ModelConfig, signature: FileSignature, remarks: Sequence[Remark]
    ) -> None:
        self.config = config
        self.version = f"openvino {ov.__version__.partition('-')[0]}"
        self.remarks = remarks
        self._compiled: _Compiled = compiled
        self._request: Any = compiled.model.create_infer_request()
        self._pointed_at: object = None
        inputs, outputs = (
            {spec.name: at for at, spec in enumerate(specs)} for specs in (signature.inputs, signature.outputs)
        )
        self._inputs = [inputs[spec.name] for spec in config.inputs]
        self._outputs = [outputs[spec.name] for spec in config.outputs]
        in_file = {spec.name: spec.dims[1 if config.batches else 0 :] for spec in signature.outputs}
        self._can_bind = all(dim >= 0 for spec in config.outputs for dim in in_file[spec.name])

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the model; outputs are new arrays."""
        ready = [np.require(array, requirements=["C", "W"]) for array in inputs]
        request = self._compiled.model.create_infer_request() if self._pointed_at else self._request
        for at, tensor in zip(self._inputs, self._tensors(self.config.inputs, ready), strict=True):
            request.set_input_tensor(at, tensor)
        request.infer()
        return [
            np.array(request.get_output_tensor(at).data).view(NUMPY_DTYPES[spec.datatype])
            for at, spec in zip(self._outputs, self.config.outputs, strict=True)
        ]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """Static tensors are read and written where they are; the arrays must live as long as the call."""
        if not self._can_bind or any(array.size == 0 for array in (*inputs, *outputs)):
            return None
        places = [
            *(
                (self._request.set_input_tensor, at, t)
                for at, t in zip(self._inputs, self._tensors(self.config.inputs, inputs), strict=True)
            ),
            *(
                (self._request.set_output_tensor, at, t)
                for at, t in zip(self._outputs, self._tensors(self.config.outputs, outputs), strict=True)
            ),
        ]
        run = self._request.infer

        def bound() -> None:
            if self._pointed_at is not places:
                self._pointed_at = None
                for point, at, tensor in places:
                    point(at, tensor)
                self._pointed_at = places
            run()

        return bound

    def close(self) -> None:
        """Free the model."""
        del self._request
        del self._compiled

    @staticmethod
    def _tensors(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Any]:
        return [
            ov.Tensor(array, ov.Shape(array.shape), _TYPES[spec.datatype])
            for spec, array in zip(specs, arrays, strict=True)
        ]


def load(source: Source) -> OpenVinoEngine:
    """`model.onnx` compiled for this processor, with as many threads as the partition has."""
    if source.partition.is_gpu:
        raise LoadFailed("engine 'openvino' runs on the CPU only; serve the model with --engine onnx on a GPU")
    path = source.file("model.onnx")
    stated = source.config.parameters.get("precision", "fp32")
    if stated not in _PRECISIONS:
        raise ConfigError(
            f"config of '{source.config.name}': parameter precision is '{stated}'; engine openvino knows "
            f"{', '.join(_PRECISIONS)}"
        )
    settings = {
        "INFERENCE_NUM_THREADS": max(1, source.partition.threads),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[stated],  # by itself OpenVINO would take bf16 where it is faster
        "ENABLE_CPU_PINNING": False,  # the partition has its cores already
    }
    compiled = _compiled(path, source, settings)
    model = compiled.model
    obtained = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    where = ", but for what the file has in int8" if stated == "int8" else ""
    remarks = [Remark(f"computes in {_DATATYPES[obtained].lower()}{where}")]
    if obtained != _PRECISIONS[stated]:
        text = f"this processor has no {stated}: the model computes in {_DATATYPES[obtained].lower()}"
        remarks = [Remark(text, is_warning=True)]
    names = {spec.name for spec in (*source.config.inputs, *source.config.outputs)}
    signature = FileSignature(_specs(model.inputs, "input", names), _specs(model.outputs, "output", names))
    return OpenVinoEngine(compiled, source.settle(signature), signature, remarks)


@cache
def _core() -> Any:
    """The only one of this process, as long as it lives.

    Of two whose lives overlap, the last to end leaves the thread a signal stack that was freed (OpenVINO 2026.4): the
    next signal, Ctrl-C say, would end the process by SIGSEGV.
    """
    return ov.Core()


def _compiled(path: Path, source: Source, settings: dict[str, Any]) -> _Compiled:
    """The model as an earlier load has compiled it, else compiled and, where that can be, kept."""
    core = _core()
    choices = (path.name, str(settings["INFERENCE_PRECISION_HINT"]))
    shelf = Shelf(source.folder, Recipe("openvino", f"openvino {ov.__version__}", choices))
    if source.keeps and (found := shelf.find()) is not None:
        try:
            with foreign("OpenVINO cannot read what it made of the model", LoadFailed):
                mapped = np.memmap(found / _FILE, np.uint8, "c")
                return _Compiled(core.import_model(ov.Tensor(mapped, shared_memory=True), "CPU", settings), mapped)
        except LoadFailed:
            shelf.drop(found)
    model = core.compile_model(str(path), "CPU", settings)
    if not source.keeps:
        return _Compiled(model)
    with suppress(LoadFailed), foreign("OpenVINO cannot write what it made of the model", LoadFailed):
        shelf.make(lambda folder: (folder / _FILE).write_bytes(model.export_model().getbuffer()))
    return _Compiled(model)


def _specs(ports: Sequence[Any], kind: str, stated: set[str]) -> tuple[TensorSpec, ...]:
    """One tensor may have several names in the file: the one that the config says is taken."""
    specs = []
    for port in ports:
        name = min(port.names & stated, default=port.any_name)
        element = port.element_type.get_type_name()
        if element not in _DATATYPES:
            raise LoadFailed(
                f"{kind} '{name}' is of type {element}, which engine openvino does not take; use --engine onnx"
            )
        dims = tuple(dim.get_length() if dim.is_static else -1 for dim in port.partial_shape)
        specs.append(TensorSpec(name, _DATATYPES[element], dims))
    return tuple(specs)
