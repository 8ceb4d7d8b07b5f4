"""Inference answers of the v2 protocol: the JSON head and the binary tail for a model's outputs."""

from math import prod
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from efserve.codec.regions import Window
from efserve.codec.v2_infer import OutputPlan, Template
from efserve.errors import InferenceFailed, InvalidRequest
from efserve.inference import Buffer, Outputs, OutputTensor
from efserve.tensors import Shape, decode_bytes, encode_bytes, from_bfloat16, to_array

Values = npt.NDArray[Any]  # of any number datatype
MAX_CLASSES = 1_000_000  # of one row, to choose the top ones from
_encode = msgspec.json.Encoder().encode


def render(template: Template, outputs: Outputs) -> tuple[bytes, list[Buffer]]:
    """JSON head, without an id, and binary tail of the answer; `outputs` are in the order of the model's outputs."""
    entries: list[dict[str, Any]] = []
    tail: list[Buffer] = []
    windows = template.windows or (None,) * len(template.outputs)
    for plan, window in zip(template.outputs, windows, strict=True):
        if window is not None:
            output = outputs[plan.index]
            to_memory(plan, output, window)
            entries.append({"name": plan.spec.name, "datatype": plan.spec.datatype, "shape": list(output.shape)})
            continue
        entry, data = _output(plan, outputs[plan.index], batches=template.batches)
        entries.append(entry)
        if data is not None:
            tail.append(data)
    head = {"model_name": template.model_name, "model_version": template.model_version, "outputs": entries}
    return _encode(head), tail


def with_id(text: bytes, id_json: bytes) -> bytes:
    """A rendered JSON head with the request's id, given as the inside of a JSON string; none when it is empty."""
    return b'{"id":"%b",%b' % (id_json, text[1:]) if id_json else text


def to_memory(plan: OutputPlan, output: OutputTensor, window: Window) -> None:
    """Writes an output to the client's shared memory; InferenceFailed where it does not fit."""
    if len(output.data) > window.size_bytes:
        raise InferenceFailed(
            f"shared memory size specified with the request for output '{plan.spec.name}' ({window.size_bytes} bytes) "
            f"should be at least {len(output.data)} bytes to hold the results"
        )
    window.write(output.data)


def _output(plan: OutputPlan, output: OutputTensor, *, batches: bool) -> tuple[dict[str, Any], Buffer | None]:
    datatype, shape, data = plan.spec.datatype, output.shape, output.data
    if plan.classes:
        shape, elements = classify(plan, output, batches=batches)
        datatype, data = "BYTES", encode_bytes(elements)
    entry: dict[str, Any] = {"name": plan.spec.name, "datatype": datatype, "shape": list(shape)}
    if plan.binary:
        entry["parameters"] = {"binary_data_size": len(data)}
        return entry, data
    entry["data"] = _json_values(plan.spec.name, datatype, shape, data)
    return entry, None


def _json_values(name: str, datatype: str, shape: Shape, data: bytes) -> list[Any]:
    """Flat JSON values of a tensor. NaN and the infinities, which JSON does not have, become null."""
    if datatype != "BYTES":
        values: list[Any] = to_array(data, datatype, shape).reshape(-1).tolist()
        return values
    try:
        return [element.decode() for element in decode_bytes(memoryview(data), prod(shape), f"output '{name}'")]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"output '{name}' holds a string that is not UTF-8; ask for it with binary_data true"
        ) from exc


def classify(plan: OutputPlan, output: OutputTensor, *, batches: bool) -> tuple[Shape, list[bytes]]:
    """The `value:index[:label]` strings of the top classes, best first, and their shape.

    A model that batches is classified row by row; equal values keep the order of their indexes.
    """
    array = _numbers(plan, output)
    rows = array.reshape(output.shape[0], -1) if batches else array.reshape(1, -1)
    if rows.shape[1] > MAX_CLASSES:
        raise InvalidRequest(
            f"classification output tensor too large: '{plan.spec.name}' has {rows.shape[1]} elements, expected at "
            f"most {MAX_CLASSES}"
        )
    count = min(plan.classes, rows.shape[1])
    elements = [_class(plan, row, int(index)) for row in rows for index in _order(row)[:count]]
    return ((len(rows), count) if batches else (count,)), elements


def _numbers(plan: OutputPlan, output: OutputTensor) -> Values:
    array: Values = to_array(output.data, plan.spec.datatype, output.shape)
    return from_bfloat16(array) if plan.spec.datatype == "BF16" else array


def _order(row: Values) -> Values:
    """Indexes by falling value; NaN comes last."""
    if row.dtype.kind in "bu":
        return np.argsort(row.max(initial=0) - row if row.dtype.kind == "u" else ~row, kind="stable")
    if row.dtype.kind == "i":
        return np.argsort(~row, kind="stable")  # ~x = -x - 1 falls as x rises, and never overflows
    return np.argsort(-row, kind="stable")


def _class(plan: OutputPlan, row: Values, index: int) -> bytes:
    value = row[index].item()
    text = f"{value:f}:{index}" if isinstance(value, float) else f"{int(value)}:{index}"
    label = plan.labels[index] if index < len(plan.labels) else ""
    return (f"{text}:{label}" if label else text).encode()
