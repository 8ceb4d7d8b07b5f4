"""Bodies of inference requests and answers, with binary tensors or as JSON alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from efserve.client.control import HttpAnswer
from efserve.client.memory import Places
from efserve.client.messages import InferMessage, OutputMessage, decode
from efserve.errors import EfserveError, RemoteError
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec, byte_size, to_array, to_wire


@dataclass(frozen=True, slots=True)
class InferBody:
    """Body of an inference request; `json_bytes` is the length of its JSON head, or -1 when all of it is JSON."""

    data: bytes
    json_bytes: int

    @property
    def headers(self) -> dict[str, str]:
        """The header fields that say how to read it."""
        if self.json_bytes < 0:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(self.json_bytes)}


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A valid answer to an inference request: its outputs by name, and the bytes of those that came in binary."""

    outputs: dict[str, Array]
    payload_bytes: int  # -1: none came in binary


def infer_body(
    specs: Sequence[TensorSpec], arrays: Sequence[Array], binary: bool, outputs: Sequence[object] = ()
) -> InferBody:
    """Body of a request; arrays are in the order of `specs`, shapes whole. `outputs`: only these, () for all.

    Raises RemoteError when the server takes JSON alone and a datatype has no JSON form.
    """
    inputs: list[dict[str, object]] = []
    tail: list[bytes | memoryview] = []
    for spec, array in zip(specs, arrays, strict=True):
        entry: dict[str, object] = {"name": spec.name, "shape": array.shape, "datatype": spec.datatype}
        if binary:
            tail.append(to_wire(array))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        elif spec.datatype in ("FP16", "BF16"):
            raise RemoteError(
                f"input '{spec.name}' is {spec.datatype}, which has no JSON form, and the server takes JSON alone"
            )
        else:
            entry["data"] = _json_values(array)
        inputs.append(entry)
    message: dict[str, object] = {"inputs": inputs}
    if outputs:
        message["outputs"] = outputs
    if not binary:
        return InferBody(msgspec.json.encode(message), -1)
    if not outputs:
        message["parameters"] = {"binary_data_output": True}
    head = msgspec.json.encode(message)
    return InferBody(b"".join([head, *tail]), len(head))


def memory_body(
    inputs: Sequence[TensorSpec], arrays: Sequence[Array], outputs: Sequence[TensorSpec], places: Places
) -> InferBody:
    """Body of a request whose tensors lie in shared memory; the arrays tell the shapes of the inputs."""
    message = {
        "inputs": [
            {"name": spec.name, "shape": array.shape, "datatype": spec.datatype, "parameters": span.parameters}
            for spec, array, span in zip(inputs, arrays, places.inputs, strict=True)
        ],
        "outputs": [
            {"name": spec.name, "parameters": span.parameters}
            for spec, span in zip(outputs, places.outputs, strict=True)
        ],
    }
    return InferBody(msgspec.json.encode(message), -1)


def _json_values(array: Array) -> list[object]:
    if array.dtype.kind == "O":
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in array.ravel()]
    values: list[object] = array.ravel().tolist()
    return values


def read_infer(answer: HttpAnswer, model: str, specs: Sequence[TensorSpec]) -> InferAnswer:
    """The outputs of an answer of status 200, which must have all of `specs`, in their datatypes, shapes and sizes."""
    head_bytes = len(answer.body) if answer.json_bytes < 0 else answer.json_bytes
    message = decode(HttpAnswer(answer.status, answer.content_type, -1, answer.body[:head_bytes]), InferMessage)
    tail = memoryview(answer.body)[head_bytes:]
    outputs: dict[str, Array] = {}
    found: dict[str, tuple[str, Shape]] = {}
    for output in message.outputs:
        size = output.parameters.binary_data_size
        data = None if size is None else tail[:size]
        tail = tail[size or 0 :]
        outputs[output.name] = _output_array(output, data)
        found[output.name] = (output.datatype, tuple(output.shape))
    if len(tail):
        raise RemoteError(f"the answer of '{model}' has {len(tail)} bytes more than its outputs need")
    check_outputs(found, model, specs)
    return InferAnswer(outputs, -1 if answer.json_bytes < 0 else len(answer.body) - head_bytes)


def read_described(answer: HttpAnswer, model: str, specs: Sequence[TensorSpec]) -> None:
    """Raises RemoteError unless an answer, whose tensors are in shared memory, describes all of `specs`."""
    message = decode(answer, InferMessage)
    check_outputs({output.name: (output.datatype, tuple(output.shape)) for output in message.outputs}, model, specs)


def check_outputs(outputs: Mapping[str, tuple[str, Shape]], model: str, specs: Sequence[TensorSpec]) -> None:
    """Raises RemoteError unless the outputs, (datatype, shape) by name, are all of `specs`."""
    for spec in specs:
        if spec.name not in outputs:
            raise RemoteError(f"the answer of '{model}' lacks output '{spec.name}'; it has {', '.join(outputs)}")
        datatype, shape = outputs[spec.name]
        fits = len(shape) == len(spec.dims) and all(
            want in (-1, got) for want, got in zip(spec.dims, shape, strict=True)
        )
        if not fits or datatype != spec.datatype:
            raise RemoteError(
                f"output '{spec.name}' of '{model}' came as {datatype} {list(shape)}, its metadata says "
                f"{spec.datatype} {list(spec.dims)}"
            )


def ranked(outputs: Mapping[str, Array], output: str) -> Array:
    """The classification of an output in an answer; RemoteError where there is none."""
    found = outputs.get(output)
    if found is None or found.dtype != np.object_:
        raise RemoteError(f"the server's answer has no classification of output '{output}'")
    return np.atleast_2d(found)


def _output_array(output: OutputMessage, data: memoryview | None) -> Array:
    what, shape = f"output '{output.name}'", tuple(output.shape)
    if output.datatype not in NUMPY_DTYPES:
        raise RemoteError(f"{what} has datatype '{output.datatype}', which the protocol does not know")
    if data is not None:
        size = output.parameters.binary_data_size
        if len(data) != size or (output.datatype != "BYTES" and size != byte_size(output.datatype, shape)):
            raise RemoteError(
                f"{what} of shape {list(shape)} {output.datatype}: got {len(data)} bytes, binary_data_size is {size}"
            )
        try:
            return to_array(data, output.datatype, shape, what)
        except EfserveError as exc:
            raise RemoteError(str(exc)) from exc
    if output.data is None:
        raise RemoteError(f"{what} has neither 'data' nor 'binary_data_size'")
    try:
        array = np.array(output.data, NUMPY_DTYPES[output.datatype])
    except (TypeError, ValueError) as exc:
        raise RemoteError(f"{what}: its data are not {output.datatype}: {exc}") from exc
    if array.size != math.prod(shape):
        raise RemoteError(f"{what}: {array.size} values for shape {list(shape)}")
    return array.reshape(shape)
