"""The inference routes: the hot path from a request's bytes to `submit`, and from its outputs to the answer's bytes."""

import logging
import time
from functools import partial
from typing import NamedTuple

from efserve.codec.compression import choose_encoding, deflate, inflate
from efserve.codec.v2_infer import Template, decode
from efserve.codec.v2_response import render, with_id
from efserve.errors import EfserveError
from efserve.frontend.connection import Exchange
from efserve.frontend.heads import Head
from efserve.frontend.responses import BINARY_TYPE, INTERNAL_ERROR, JSON_TYPE, Answer, answer_head, error_answer
from efserve.frontend.service import Service
from efserve.inference import Body, Buffer, InferRequest, Outcome, Outputs

logger = logging.getLogger(__name__)

JOINED_BYTES = 64 * 1024  # outputs up to here are joined with their head into one buffer
MAX_CACHED_ANSWERS = 64


class InferHandler:
    """Handler of every request with one certain head: model, version and codings are settled."""

    __slots__ = ("_accept", "_encoding", "_header_length", "_max_bytes", "_name", "_service", "_version")

    def __init__(self, service: Service, name: str, version: str, head: Head, max_bytes: int) -> None:
        self._service = service
        self._name = name
        self._version = version
        self._header_length = head.header_length
        self._encoding = head.content_encoding.decode("latin-1")
        self._accept = choose_encoding(head.accept_encoding.decode("latin-1")) if head.accept_encoding else ""
        self._max_bytes = max_bytes

    def __call__(self, exchange: Exchange, body: Body) -> None:
        arrival_ns = time.monotonic_ns()
        model = self._service.model(self._name, self._version)
        if self._encoding:
            body = inflate(body, self._encoding, self._max_bytes)
        template, tensors, id_json = decode(model, body, self._header_length)
        request = InferRequest(
            tensors,
            template.shapes,
            template.rows,
            template.shape_key,
            partial(_finish, exchange, template, id_json, self._accept),
            template.timeout_us,
            arrival_ns,
            priority=template.priority,
        )
        if exchange.begun_ns:
            request.begun_ns = exchange.begun_ns
        exchange.request = request
        model.submit(request)


class CachedAnswer(NamedTuple):
    """The answers of one template with outputs of certain shapes and sizes, but for their tensors and ids."""

    prefix: bytes  # HTTP head and JSON head
    text: bytes  # JSON head
    tail_bytes: int


def _finish(exchange: Exchange, template: Template, id_json: bytes, accept: str, outcome: Outcome) -> None:
    try:
        if isinstance(outcome, EfserveError):
            answer: Answer = error_answer(outcome)
        elif accept:
            answer = _compressed(template, id_json, outcome, accept)
        else:
            answer = _answer(template, id_json, outcome)
    except EfserveError as exc:
        answer = error_answer(exc)
    except Exception:  # the border of one request
        logger.exception("the outputs of model '%s' could not be written", template.model_name)
        answer = INTERNAL_ERROR
    exchange.connection.answer(exchange, answer)


def _answer(template: Template, id_json: bytes, outputs: Outputs) -> Answer:
    only = template.only_output
    if only >= 0 and not id_json:
        shape, data = outputs[only].shape, outputs[only].data
        known: CachedAnswer | None = template.answers.get((shape, len(data)))
        if known is not None:
            return known.prefix + data if len(data) <= JOINED_BYTES else [known.prefix, data]
    if not template.all_binary:
        text, tail = render(template, outputs)
        text = with_id(text, id_json)
        tail_bytes = sum(map(len, tail))
        return _joined(_head(len(text), tail_bytes, binary=template.has_tail) + text, tail, tail_bytes)
    known, tail = _cached(template, outputs)
    prefix = known.prefix
    if id_json:
        text = with_id(known.text, id_json)
        prefix = _head(len(text), known.tail_bytes, binary=True) + text
    return _joined(prefix, tail, known.tail_bytes)


def _cached(template: Template, outputs: Outputs) -> tuple[CachedAnswer, list[Buffer]]:
    """What all answers with outputs of these shapes and sizes have in common, and this one's tail."""
    tail: list[Buffer] = [outputs[plan.index].data for plan in template.outputs]
    keys = tuple([(outputs[plan.index].shape, len(outputs[plan.index].data)) for plan in template.outputs])
    key: object = keys if template.only_output < 0 else keys[0]
    known: CachedAnswer | None = template.answers.get(key)
    if known is None:
        text, tail = render(template, outputs)
        tail_bytes = sum(map(len, tail))
        known = CachedAnswer(_head(len(text), tail_bytes, binary=True) + text, text, tail_bytes)
        if len(template.answers) >= MAX_CACHED_ANSWERS:
            template.answers.clear()
        template.answers[key] = known
    return known, tail


def _joined(prefix: bytes, tail: list[Buffer], tail_bytes: int) -> Answer:
    return b"".join([prefix, *tail]) if tail_bytes <= JOINED_BYTES else [prefix, *tail]


def _compressed(template: Template, id_json: bytes, outputs: Outputs, encoding: str) -> Answer:
    text, tail = render(template, outputs)
    text = with_id(text, id_json)
    body = deflate([text, *tail], encoding)
    extra = b"Content-Encoding: %b\r\n" % encoding.encode()
    if template.has_tail:
        extra += b"Inference-Header-Content-Length: %d\r\n" % len(text)
    return answer_head(len(body), BINARY_TYPE if template.has_tail else JSON_TYPE, extra=extra) + body


def _head(text_bytes: int, tail_bytes: int, *, binary: bool) -> bytes:
    if not binary:
        return answer_head(text_bytes, JSON_TYPE)
    extra = b"Inference-Header-Content-Length: %d\r\n" % text_bytes
    return answer_head(text_bytes + tail_bytes, BINARY_TYPE, extra=extra)
