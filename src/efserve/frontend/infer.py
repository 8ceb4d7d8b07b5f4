"""The inference routes: the hot path from a request's bytes to `submit`, and from its outputs to the answer's bytes."""

import logging
import time
from functools import partial

from efserve.codec.compression import choose_encoding, deflate, inflate
from efserve.codec.v2_infer import Template, decode
from efserve.codec.v2_response import render
from efserve.errors import EfserveError
from efserve.frontend.connection import Exchange
from efserve.frontend.heads import Head
from efserve.frontend.responses import BINARY_TYPE, INTERNAL_ERROR, JSON_TYPE, Answer, answer_head, error_answer
from efserve.frontend.service import Service
from efserve.inference import InferRequest, Outcome, Outputs

logger = logging.getLogger(__name__)

JOINED_BYTES = 64 * 1024  # outputs up to here are joined with their head into one buffer
MAX_CACHED_PREFIXES = 64


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

    def __call__(self, exchange: Exchange, body: memoryview) -> None:
        arrival_ns = time.monotonic_ns()
        model = self._service.model(self._name, self._version)
        if self._encoding:
            body = inflate(body, self._encoding, self._max_bytes)
        template, tensors = decode(model, body, self._header_length)
        request = InferRequest(
            tensors,
            template.shapes,
            template.rows,
            template.shape_key,
            partial(_finish, exchange, template, self._accept),
            template.timeout_us,
            arrival_ns,
        )
        exchange.request = request
        model.submit(request)


def _finish(exchange: Exchange, template: Template, accept: str, outcome: Outcome) -> None:
    try:
        if isinstance(outcome, EfserveError):
            answer: Answer = error_answer(outcome)
        elif accept:
            answer = _compressed(template, outcome, accept)
        else:
            answer = _answer(template, outcome)
    except EfserveError as exc:
        answer = error_answer(exc)
    except Exception:  # the border of one request
        logger.exception("the outputs of model '%s' could not be written", template.model_name)
        answer = INTERNAL_ERROR
    exchange.connection.answer(exchange, answer)


def _answer(template: Template, outputs: Outputs) -> Answer:
    only = template.only_output
    if only >= 0:
        output = outputs[only]
        prefix = template.prefixes.get((output.shape, len(output.data)))
        if prefix is not None:
            data = output.data
            return prefix + data if len(data) <= JOINED_BYTES else [prefix, data]
    return _first_answer(template, outputs)


def _first_answer(template: Template, outputs: Outputs) -> Answer:
    text, tail = render(template, outputs)
    prefix = _head(len(text), sum(map(len, tail)), binary=template.has_tail) + text
    if template.only_output >= 0:
        output = outputs[template.only_output]
        if len(template.prefixes) >= MAX_CACHED_PREFIXES:
            template.prefixes.clear()
        template.prefixes[output.shape, len(output.data)] = prefix
    if sum(map(len, tail)) <= JOINED_BYTES:
        return b"".join([prefix, *tail])
    return [prefix, *tail]


def _compressed(template: Template, outputs: Outputs, encoding: str) -> Answer:
    text, tail = render(template, outputs)
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
