"""Inference requests and answers of the v2 protocol as protobuf messages, checked as those over HTTP are.

A ModelInferRequest is its head, which says names and shapes, and the raw contents. Clients repeat their heads, but for
the id: what a head says is worked out once, and looked up from then on by its bytes. Answers are written the same way.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from efserve.codec.regions import Window
from efserve.codec.v2_infer import (
    MAX_CACHED_TEMPLATES,
    MAX_CACHED_TEXT_BYTES,
    ModelView,
    OutputPlan,
    Template,
    build_template,
)
from efserve.codec.v2_inputs import inference_input
from efserve.codec.v2_json import InputHead, InputParameters, OutputHead, OutputParameters, RequestHead
from efserve.codec.v2_parameters import read_grpc_parameters, read_grpc_request_parameters
from efserve.codec.v2_response import classify, to_memory
from efserve.errors import InvalidRequest
from efserve.inference import Body, Buffer, Outputs, Wire
from efserve.tensors import NUMPY_DTYPES, bytes_element_ends, encode_bytes
from efserve.triton_service import service_pb2 as pb

_Told = TypeVar("_Told")

MAX_CACHED_ANSWERS = 64
MAX_CACHED_STARTS = 64
FINAL_RESPONSE = "triton_final_response"

# Tags of length-delimited fields: number << 3 | 2
_NAME, _VERSION, _ID, _RAW, _RAW_OUTPUT = 0x0A, 0x12, 0x1A, 0x3A, b"\x32"
_TAGS = frozenset(range(_NAME, _RAW + 1, 8))
_STREAMED = b"\x12"  # infer_response in a ModelStreamInferResponse
_ERROR = b"\x0a"  # error_message there

# The field of InferTensorContents that holds a datatype.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Scanned(NamedTuple):
    """The parts of a ModelInferRequest: model, id, the head without the id, what a template is known by, tensors."""

    name: str
    version: str
    id: bytes
    head: bytes
    key: bytes
    raw: list[Buffer]


class Scanner:
    """Cuts serialized ModelInferRequests into their parts.

    Remembers, for each size of a request with one raw tensor, the bytes in front of that tensor: another request of
    this size that begins with them differs in its tensor alone.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Scanned]] = {}

    def scan(self, body: Body) -> Scanned:
        """The parts of one request; InvalidRequest when it is none. Raw contents are not copied where they are large.

        A request whose fields stand in an unusual order is put in order first.
        """
        known = self._known.get(len(body))
        if known is not None:
            start, parts = known
            size = len(start)
            if body[:size] == start:
                return Scanned(parts.name, parts.version, parts.id, parts.head, parts.key, [body[size:]])
        found = _cut(body)
        if found is None:
            return _scan_slowly(body)
        if len(found.raw) == 1:
            size = len(body) - len(found.raw[0])
            if size <= MAX_CACHED_TEXT_BYTES:
                if len(self._known) >= MAX_CACHED_STARTS:
                    self._known.clear()
                self._known[len(body)] = (bytes(body[:size]), found._replace(raw=[]))
        return found


def _cut(body: Body) -> Scanned | None:
    """The parts of a request in the order in which protobuf writes fields; None for any other."""
    size, at, last = len(body), 0, 0
    name = version = request_id = b""
    id_start = id_end = head_end = 0
    raw: list[Buffer] = []
    try:
        while at < size:
            start, tag, length = at, body[at], body[at + 1]
            at += 2
            if length > 127:
                length, at = _length(body, at - 1)
            end = at + length
            if tag not in _TAGS or tag < last or end > size:
                return None
            last = tag
            if tag == _RAW:
                raw.append(body[at:end])
            else:
                head_end = end
                if tag == _NAME:
                    name = bytes(body[at:end])
                elif tag == _VERSION:
                    version = bytes(body[at:end])
                elif tag == _ID:
                    request_id, id_start, id_end = bytes(body[at:end]), start, end
            at = end
        head = bytes(body[:id_start]) + bytes(body[id_end:head_end])
        return Scanned(name.decode(), version.decode(), request_id, head, _key(head, raw), raw)
    except (UnicodeDecodeError, IndexError):
        return None


def _length(body: Body, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def _scan_slowly(body: Body) -> Scanned:
    try:
        message = pb.ModelInferRequest.FromString(bytes(body))
    except DecodeError as exc:
        raise InvalidRequest(f"failed to parse the ModelInferRequest: {exc}") from exc
    raw: list[Buffer] = list(message.raw_input_contents)
    request_id = message.id.encode()
    message.ClearField("raw_input_contents")
    message.ClearField("id")
    head = message.SerializeToString()
    return Scanned(message.model_name, message.model_version, request_id, head, _key(head, raw), raw)


def _key(head: bytes, raw: list[Buffer]) -> bytes:
    """What a template depends on: the head, and the tensors' sizes. Begins with a byte that no JSON begins with."""
    return b"\0%b\0%b" % (",".join([str(len(data)) for data in raw]).encode(), head)


@dataclass(frozen=True, slots=True)
class GrpcTemplate:
    """A template, and for each input of the model which of the request's tensors it is.

    `order` is -1 for an input that is none of them: it is in shared memory, or it is not given at all. `strings` are
    the BYTES inputs among the tensors: which, elements, name for errors.
    """

    template: Template
    order: tuple[int, ...]
    strings: tuple[tuple[int, int, str], ...]
    wants_final: bool  # an empty final response was asked for

    def tensors(self, given: list[Buffer]) -> tuple[Wire, ...]:
        """The request's tensors in the order of the model's inputs; InvalidRequest for damaged strings."""
        for index, count, what in reversed(self.strings):
            data = given[index]
            bytes_element_ends(data if not isinstance(data, bytearray) else bytes(data), count, what)
        if len(given) == len(self.order):
            return tuple(given) if len(given) == 1 else tuple([given[index] for index in self.order])
        memory, in_memory = self.template.memory, self.template.in_memory or (None,) * len(self.order)
        return tuple(
            [
                given[index] if index >= 0 else b"" if item is None or memory is None else item.read(memory)
                for index, item in zip(self.order, in_memory, strict=True)
            ]
        )

    def held(self) -> "GrpcTemplate":
        """The template for one request, which from now on holds the places of its outputs in shared memory."""
        return self if self.template.memory is None else replace(self, template=self.template.held())


def decode(model: ModelView, scanned: Scanned) -> tuple[GrpcTemplate, tuple[Wire, ...]]:
    """What a request says, and its tensors in the order of the model's inputs. Raises InvalidRequest or Unsupported."""
    raw, key = scanned.raw, scanned.key
    known: GrpcTemplate | None = model.templates.get(key)
    if known is not None:
        return known if known.template.memory is None else known.held(), known.tensors(raw)
    try:
        message = pb.ModelInferRequest.FromString(scanned.head)
    except DecodeError as exc:
        raise InvalidRequest(f"failed to parse the ModelInferRequest: {exc}") from exc
    tensors = _given_tensors(model, message, raw)
    template = _build(model, message, tensors)
    if tensors is raw and len(key) <= MAX_CACHED_TEXT_BYTES:
        if len(model.templates) >= MAX_CACHED_TEMPLATES:
            model.templates.clear()
        model.templates[key] = template
    return template.held(), template.tensors(tensors)


def _build(model: ModelView, message: Any, tensors: list[Buffer]) -> GrpcTemplate:
    """The request's head, told as HTTP's JSON would, and checked by the same code."""
    parameters = read_grpc_request_parameters(message.parameters)
    sizes = iter([len(data) for data in tensors])
    inputs = []
    for item in message.inputs:
        told = _convert(read_grpc_parameters(item.parameters), InputParameters, f"input '{item.name}'")
        if told.shared_memory_region is not None and item.HasField("contents"):
            raise InvalidRequest(f"input '{item.name}' must have either contents or 'shared_memory_region', not both")
        told.binary_data_size = None if told.shared_memory_region is not None else next(sizes)
        inputs.append(InputHead(item.name, list(item.shape), item.datatype, told))
    outputs = []
    for wanted in message.outputs:
        told_output = _convert(read_grpc_parameters(wanted.parameters), OutputParameters, f"output '{wanted.name}'")
        told_output.binary_data = True
        outputs.append(OutputHead(wanted.name, told_output))
    template = build_template(model, RequestHead(inputs, "", {**parameters, "binary_data_output": True}, outputs))
    places = [item.name for item in inputs if item.parameters.shared_memory_region is None]
    order = tuple(places.index(spec.name) if spec.name in places else -1 for spec in model.config.inputs)
    strings = tuple(
        (places.index(spec.name), int(np.prod(shape)), inference_input(model.config, spec.name))
        for spec, shape in zip(model.config.inputs, template.shapes, strict=True)
        if spec.datatype == "BYTES" and spec.name in places
    )
    return GrpcTemplate(template, order, strings, bool(parameters.get("triton_enable_empty_final_response")))


def _convert(parameters: dict[str, Any], kind: type[_Told], what: str) -> _Told:
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"parameters of {what}: {exc}") from exc


def _given_tensors(model: ModelView, message: Any, raw: list[Buffer]) -> list[Buffer]:
    """Wire bytes of the request's tensors that are not in shared memory, in the request's order."""
    here = [item for item in message.inputs if "shared_memory_region" not in item.parameters]
    name = model.config.name
    if raw or not here:
        if typed := next((item.name for item in here if item.HasField("contents")), None):
            raise InvalidRequest(
                f"contents field must not be specified when using raw_input_contents for '{typed}' for model '{name}'"
            )
        if len(raw) != len(here):
            raise InvalidRequest(
                f"expected {len(here)} raw_input_contents for the inputs of the request for model '{name}', "
                f"got {len(raw)}"
            )
        return raw
    return [_wire_from_contents(item, f"input '{item.name}' of model '{name}'") for item in here]


def _wire_from_contents(item: Any, what: str) -> bytes:
    field = _CONTENTS.get(item.datatype)
    if field is None:
        known = item.datatype in NUMPY_DTYPES
        reason = "has no typed contents; send it as raw_input_contents" if known else "is no datatype of the protocol"
        raise InvalidRequest(f"{what}: '{item.datatype}' {reason}")
    other = next((given.name for given, _ in item.contents.ListFields() if given.name != field), None)
    if other is not None:
        raise InvalidRequest(f"{what}: datatype '{item.datatype}' is given in {field}, not in {other}")
    values = getattr(item.contents, field)
    if item.datatype == "BYTES":
        return encode_bytes(values)
    dtype: np.dtype[Any] = NUMPY_DTYPES[item.datatype]
    array = np.array(values, np.uint64 if dtype.kind == "u" else np.int64 if dtype.kind == "i" else dtype)
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidRequest(f"{what}: a value is out of range for {item.datatype} ({limits.min} to {limits.max})")
    return array.astype(dtype).tobytes()


# Answers


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answers of one template with outputs of certain shapes and sizes, but for ids and tensors."""

    name: bytes  # model name and version
    outputs: bytes
    tags: tuple[bytes, ...]  # in front of each raw output
    size_bytes: int  # of all, without an id
    whole: bytes  # gRPC's prefix and everything in front of the one output, without an id; empty for several


def encode(template: Template, request_id: bytes, outputs: Outputs, *, final: bool = False) -> list[Buffer]:
    """A ModelInferResponse in parts, with gRPC's prefix. `final` marks it as the last of its request."""
    plans = template.outputs
    if template.only_output >= 0:
        only = outputs[template.only_output]
        answer: _Answer | None = template.answers.get((only.shape, len(only.data), final))
        if answer is None:
            answer = _remember(template, outputs, (only.shape, len(only.data), final), final=final)
        if not request_id:
            return [answer.whole, only.data]
        tensors: list[Buffer] = [only.data]
    else:
        windows = template.windows or (None,) * len(plans)
        shaped = [_tensor(template, plan, outputs, window) for plan, window in zip(plans, windows, strict=True)]
        tensors = [data for _, _, data in shaped]
        answer = _describe(template, shaped, final=final)
    told_id = _field(b"\x1a", request_id) if request_id else b""
    size = answer.size_bytes + len(told_id)
    parts: list[Buffer] = [b"\0%b%b%b%b" % (size.to_bytes(4, "big"), answer.name, told_id, answer.outputs)]
    for tag, data in zip(answer.tags, tensors, strict=True):
        parts += (tag, data)
    return parts


def _remember(template: Template, outputs: Outputs, key: object, *, final: bool) -> _Answer:
    answer = _describe(template, [_tensor(template, plan, outputs) for plan in template.outputs], final=final)
    if len(template.answers) >= MAX_CACHED_ANSWERS:
        template.answers.clear()
    template.answers[key] = answer
    return answer


_Shaped = tuple[str, tuple[int, ...], Buffer]


def _tensor(template: Template, plan: OutputPlan, outputs: Outputs, window: Window | None = None) -> _Shaped:
    """Datatype, shape and bytes of one output as it is answered; no bytes where they go to shared memory."""
    output = outputs[plan.index]
    if window is not None:
        to_memory(plan, output, window)
        return plan.spec.datatype, output.shape, b""
    if not plan.classes:
        return plan.spec.datatype, output.shape, output.data
    shape, elements = classify(plan, output, batches=template.batches)
    return "BYTES", shape, encode_bytes(elements)


def _describe(template: Template, shaped: list[_Shaped], *, final: bool) -> _Answer:
    name = pb.ModelInferResponse(model_name=template.model_name, model_version=template.model_version)
    rest = pb.ModelInferResponse()
    for plan, (datatype, shape, _) in zip(template.outputs, shaped, strict=True):
        rest.outputs.add(name=plan.spec.name, datatype=datatype, shape=shape)
    if final:
        rest.parameters[FINAL_RESPONSE].bool_param = True
    begin, described = name.SerializeToString(), rest.SerializeToString()
    tags = tuple([_RAW_OUTPUT + _varint(len(data)) for _, _, data in shaped])
    size = len(begin) + len(described) + sum(map(len, tags)) + sum([len(data) for _, _, data in shaped])
    whole = b"\0" + size.to_bytes(4, "big") + begin + described + tags[0] if len(tags) == 1 else b""
    return _Answer(begin, described, tags, size, whole)


def streamed(parts: list[Buffer]) -> list[Buffer]:
    """An encoded ModelInferResponse as a ModelStreamInferResponse."""
    first = bytes(parts[0])
    size = int.from_bytes(first[1:5], "big")
    tag = _STREAMED + _varint(size)
    return [b"\0" + (size + len(tag)).to_bytes(4, "big") + tag + first[5:], *parts[1:]]


def stream_error(text: str, request_id: bytes) -> list[Buffer]:
    """The ModelStreamInferResponse for a request that failed, with gRPC's prefix."""
    told_id = _field(_STREAMED, _field(b"\x1a", request_id)) if request_id else b""
    data = _field(_ERROR, text.encode()) + told_id
    return [b"\0" + len(data).to_bytes(4, "big") + data]


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
