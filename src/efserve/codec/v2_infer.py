"""Inference requests of the v2 protocol over HTTP: from JSON head and binary tail to checked tensors.

A request without JSON tensors is described by its head alone, and clients repeat their heads: what a head says is
worked out once, as a `Template`, and looked up from then on by the head's bytes. NVIDIA's C++ clients count up an `id`
in front of an otherwise equal head, so an id there is looked past.
"""

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol

import msgspec

from efserve.codec.regions import ClientMemory, RegionPlace, Window
from efserve.codec.v2_inputs import (
    MemoryInput,
    by_name,
    check_input,
    check_rows,
    check_shape,
    inference_input,
    listed,
    memory_inputs,
    shape_key_of,
    tail_places,
    with_absent,
)
from efserve.codec.v2_json import (
    OutputHead,
    RequestHead,
    check_data,
    parse_request,
    wire_from_json,
)
from efserve.codec.v2_parameters import parse_parameters
from efserve.errors import InvalidRequest
from efserve.inference import Body, Buffer, Wire
from efserve.model_config import ModelConfig
from efserve.tensors import Shape, TensorSpec, byte_size, bytes_element_ends

MAX_CACHED_TEXT_BYTES = 1024
MAX_CACHED_TEMPLATES = 256

_LEADING_ID = re.compile(rb'\{"id":"([\w.:+/=@-]{0,128})",')  # of characters that mean themselves in JSON


class ModelView(Protocol):
    """What decoding needs of a model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def version(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def templates(self) -> dict[bytes, Any]: ...
    @property
    def memory(self) -> ClientMemory: ...


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How one output goes into the answer."""

    index: int  # among the model's outputs
    spec: TensorSpec
    binary: bool
    classes: int = 0  # > 0: the top classes instead of the tensor
    labels: tuple[str, ...] = ()
    place: RegionPlace | None = None  # it goes to the client's shared memory instead of the answer


@dataclass(slots=True, eq=False)
class Template:
    """All that a request's head says but its id, checked against the model; `answers` is a cache of the frontend's.

    `slices` are the places of the inputs in the binary tail, in the model's order; None for one given as JSON.
    """

    model_name: str
    model_version: str
    shapes: tuple[Shape, ...]
    rows: int
    shape_key: object
    timeout_us: int
    slices: tuple[tuple[int, int] | None, ...]
    tail_bytes: int
    strings: tuple[tuple[int, int, int, str], ...]  # BYTES inputs in the tail: from, to, elements, name for errors
    outputs: tuple[OutputPlan, ...]
    batches: bool  # tensors begin with the batch dimension
    only_input: bool = False  # the whole tail is the one input
    only_output: int = -1  # index of the one output, when it is answered as binary
    has_tail: bool = False  # the answer has binary outputs
    all_binary: bool = False  # the answer's head depends on nothing but shapes and sizes
    answers: dict[object, Any] = field(default_factory=dict)
    priority: int = 0
    in_memory: tuple[MemoryInput | None, ...] = ()  # of each input, where any is in shared memory
    memory: ClientMemory | None = None  # where any input or output is
    windows: tuple[Window | None, ...] = ()  # of each output, once a request holds them

    def __post_init__(self) -> None:
        self.only_input = len(self.slices) == 1 and self.slices[0] is not None
        self.only_input = self.only_input and not (self.strings or self.in_memory)
        self.has_tail = any(plan.binary and plan.place is None for plan in self.outputs)
        self.all_binary = all(plan.binary and plan.place is None and not plan.classes for plan in self.outputs)
        if len(self.outputs) == 1 and self.all_binary:
            self.only_output = self.outputs[0].index

    def split(self, tail: Body) -> tuple[Wire, ...]:
        """The tensors in a binary tail; only for templates without JSON tensors."""
        if len(tail) != self.tail_bytes:
            raise InvalidRequest(
                f"the request holds {len(tail)} bytes of binary tensor data for model '{self.model_name}', "
                f"its inputs need {self.tail_bytes}"
            )
        if self.only_input:
            return (tail,)
        self.check_strings(tail)
        if self.in_memory and self.memory is not None:
            return tuple(
                [
                    tail[place[0] : place[1]] if item is None else item.read(self.memory)
                    for place, item in zip(self.slices, self.in_memory, strict=True)
                    if place is not None
                ]
            )
        return tuple([tail[place[0] : place[1]] for place in self.slices if place is not None])

    def held(self) -> "Template":
        """The template for one request, which from now on holds the places of its outputs in shared memory."""
        if self.memory is None or all(plan.place is None for plan in self.outputs):
            return self
        request = copy(self)
        request.windows = tuple(plan.place and self.memory.window(plan.place) for plan in self.outputs)
        return request

    def check_strings(self, tail: Body) -> None:
        """Raise InvalidRequest unless every BYTES input in the tail has its elements."""
        for start, stop, count, what in reversed(self.strings):
            bytes_element_ends(tail[start:stop], count, what)


# Template, tensors in the order of the model's inputs, and id as the inside of a JSON string. A plain tuple, as one
# is made for each request.
Decoded = tuple[Template, tuple[Wire, ...], bytes]


def decode(model: ModelView, body: Body, header_length: int | None) -> Decoded:
    """Decode one request body.

    `header_length` is Inference-Header-Content-Length: None when absent (all JSON), 0 for a raw request. Raises
    InvalidRequest or Unsupported.
    """
    if not header_length:
        return _decode_whole(model, body) if header_length is None else _decode_raw(model.config, model, body)
    text = bytes(body[:header_length])
    known: tuple[Template, bytes] | None = model.templates.get(text)
    if known is not None:
        template = known[0] if known[0].memory is None else known[0].held()
        return template, template.split(body[header_length:]), known[1]
    if header_length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {header_length}, but the request body has only {len(body)} bytes"
        )
    return _decode_parts(model, text, body[header_length:])


def _decode_whole(model: ModelView, body: Body) -> Decoded:
    template, tensors, id_json = _decode_new(model, body, body[len(body) :])
    return template.held(), tensors, id_json


def _decode_parts(model: ModelView, text: bytes, tail: Body) -> Decoded:
    leading = _LEADING_ID.match(text)
    key = text if leading is None else b"{" + text[leading.end() :]
    if leading is not None:
        known: tuple[Template, bytes] | None = model.templates.get(key)
        if known is not None and not known[1]:
            return known[0].held(), known[0].split(tail), leading[1]
        if b'"id"' in key:  # it may be another, which counts instead of the first
            leading, key = None, text
    template, tensors, id_json = _decode_new(model, text, tail)
    if None not in template.slices and len(key) <= MAX_CACHED_TEXT_BYTES:
        if len(model.templates) >= MAX_CACHED_TEMPLATES:
            model.templates.clear()
        model.templates[key] = (template, id_json if leading is None else b"")
    return template.held(), tensors, id_json


def _decode_new(model: ModelView, text: Buffer, tail: Body) -> Decoded:
    head = parse_request(text)
    if any(key.startswith("triton_") for key in head.parameters):  # over gRPC there is one that may be sent
        raise InvalidRequest(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    try:
        template = build_template(model, head)
    except InvalidRequest:
        check_data(head)  # what is wrong with the JSON itself is told first
        raise
    whole_tail = None not in template.slices
    tensors = template.split(tail) if whole_tail else _mixed_tensors(model.config, head, template, tail)
    return template, tensors, msgspec.json.encode(str(head.id))[1:-1]


def _mixed_tensors(config: ModelConfig, head: RequestHead, template: Template, tail: Body) -> tuple[Wire, ...]:
    """Tensors of a request of which at least one is JSON."""
    if len(tail) != template.tail_bytes:
        template.split(tail)  # raises
    by_name = {given.name: given for given in head.inputs}
    tensors: list[Wire] = []
    in_memory = template.in_memory or (None,) * len(template.slices)
    for spec, shape, place, item in zip(config.inputs, template.shapes, template.slices, in_memory, strict=True):
        if item is not None and template.memory is not None:
            tensors.append(item.read(template.memory))
        elif place is None:
            what = inference_input(config, spec.name)
            tensors.append(wire_from_json(by_name[spec.name].data, spec.datatype, prod(shape), what))
        else:
            tensors.append(tail[place[0] : place[1]])
    template.check_strings(tail)
    return tuple(tensors)


def _decode_raw(config: ModelConfig, model: ModelView, body: Body) -> Decoded:
    """A raw request: the body is the model's one input, whose shape follows from its size."""
    if len(config.inputs) != 1:
        raise InvalidRequest(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(config.inputs)} inputs in "
            f"'{config.name}' model configuration"
        )
    spec = config.inputs[0]
    if spec.datatype == "BYTES":
        body = len(body).to_bytes(4, "little") + bytes(body)  # the body is the one element
    shape = _raw_shape(config, spec, len(body))
    rows = check_rows(config, [shape])
    check_shape(config, spec, shape)
    outputs = _plan_outputs(config, model.labels, [], default_binary=True)
    place, key = (0, len(body)), shape_key_of(config, (shape,))
    template = Template(
        config.name, model.version, (shape,), rows, key, 0, (place,), len(body), (), outputs, config.batches
    )
    return template, template.split(body), b""


def _raw_shape(config: ModelConfig, spec: TensorSpec, size_bytes: int) -> Shape:
    whole = config.input_shape(spec)
    if spec.datatype == "BYTES":
        if prod(spec.dims) != 1 or -1 in spec.dims:
            raise InvalidRequest(f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]")
        return (1,) * len(whole)
    if spec.dims.count(-1) and config.batches:
        whole = (1, *spec.dims)
    if whole.count(-1) > 1:
        raise InvalidRequest(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    unit = byte_size(spec.datatype, [dim for dim in whole if dim != -1])
    count, left = divmod(size_bytes, unit) if unit else (0, size_bytes)
    if left or (-1 not in whole and count != 1):
        raise InvalidRequest(
            f"raw input '{spec.name}' of model '{config.name}' has {size_bytes} bytes, its shape {listed(whole)} needs "
            f"{'a multiple of ' if -1 in whole else ''}{unit}"
        )
    return tuple(count if dim == -1 else dim for dim in whole)


def build_template(model: ModelView, head: RequestHead) -> Template:
    """What the head says, checked against the model's config, outputs first as Triton does."""
    config = model.config
    asked = parse_parameters(head.parameters)
    places, tail_bytes = tail_places(head.inputs)
    outputs = _plan_outputs(config, model.labels, head.outputs, default_binary=asked.binary_data_output)
    given = by_name(config, head.inputs)
    if len(given) < len(config.inputs):  # the rest is optional
        config = replace(config, inputs=tuple(spec for spec in config.inputs if spec.name in given))
    shapes = tuple(tuple(given[spec.name].shape) for spec in config.inputs)
    rows = check_rows(config, shapes)
    for spec, shape in reversed(list(zip(config.inputs, shapes, strict=True))):  # Triton looks at the last one first
        check_input(config, spec, shape, given[spec.name])
    slices = tuple(places.get(spec.name) for spec in config.inputs)
    strings = tuple(
        (*place, prod(shape), inference_input(config, spec.name))
        for spec, shape, place in zip(config.inputs, shapes, slices, strict=True)
        if spec.datatype == "BYTES" and place is not None and given[spec.name].parameters.binary_data_size is not None
    )
    in_memory = memory_inputs(config, given, shapes)
    if config is not model.config:
        shapes, slices, in_memory = with_absent(model.config, given, rows, (shapes, slices, in_memory))
    return Template(
        model_name=config.name,
        model_version=model.version,
        shapes=shapes,
        rows=rows,
        shape_key=shape_key_of(config, shapes),
        timeout_us=asked.timeout,
        slices=slices,
        tail_bytes=tail_bytes,
        strings=strings,
        outputs=outputs,
        batches=config.batches,
        priority=asked.priority,
        in_memory=in_memory,
        memory=model.memory if in_memory or any(plan.place for plan in outputs) else None,
    )


def _plan_outputs(
    config: ModelConfig, labels: Mapping[str, tuple[str, ...]], asked: list[OutputHead], *, default_binary: bool
) -> tuple[OutputPlan, ...]:
    places = {spec.name: index for index, spec in enumerate(config.outputs)}
    unlisted = not asked
    if unlisted:
        asked = [OutputHead(spec.name) for spec in config.outputs]
    plans: list[OutputPlan] = []
    for item in asked:
        if item.name not in places:
            raise InvalidRequest(f"unexpected inference output '{item.name}' for model '{config.name}'")
        index = places[item.name]
        if any(plan.index == index for plan in plans):
            raise InvalidRequest(f"output '{item.name}' already exists in request")
        binary = default_binary if unlisted else bool(item.parameters.binary_data)
        region = item.parameters.shared_memory_region
        plan = OutputPlan(
            index,
            config.outputs[index],
            binary,
            item.parameters.classification,
            labels.get(item.name, ()),
            RegionPlace(region, item.parameters.shared_memory_offset, item.parameters.shared_memory_byte_size)
            if region is not None
            else None,
        )
        _check_output(config, plan)
        plans.append(plan)
    return tuple(plans)


def _check_output(config: ModelConfig, plan: OutputPlan) -> None:
    datatype, what = plan.spec.datatype, f"output '{plan.spec.name}' of model '{config.name}'"
    if plan.classes and datatype == "BYTES":
        raise InvalidRequest("class result not available for output due to unsupported type 'BYTES'")
    if plan.classes and plan.place is not None:
        raise InvalidRequest("Output can't set both 'shared_memory_region' and 'classification'")
    if not (plan.binary or plan.classes or plan.place is not None) and datatype in ("FP16", "BF16"):
        raise InvalidRequest(f"{what}: {datatype} has no JSON form; ask for it with binary_data true")
