"""The v2 protocol over gRPC: a table of methods over the service that serves HTTP, and the port that offers it."""

import logging
import time
from collections.abc import Callable
from functools import partial

from efserve.codec.http2.events import HeadReceived
from efserve.codec.v2_grpc import GrpcTemplate, Scanner, decode, encode, stream_error, streamed
from efserve.codec.v2_infer import Template
from efserve.errors import EfserveError
from efserve.frontend.admin import Admin
from efserve.frontend.grpc_call import INTERNAL, Call, Method, resolve
from efserve.frontend.grpc_control import control_methods
from efserve.frontend.grpc_services import Health, reflect
from efserve.frontend.http2 import Http2Connection, Hub, Limits
from efserve.frontend.port import Port
from efserve.frontend.routes import Routes
from efserve.frontend.service import Service
from efserve.inference import Body, InferRequest, Outcome, Wire
from efserve.transport.regions import ClientRegions

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"


def open_grpc(
    service: Service,
    *,
    max_request_bytes: int,
    server_name: str = "efserve",
    limits: Limits | None = None,
    admin: Admin | None = None,
    memory: ClientRegions | None = None,
) -> Port:
    """A port that serves the v2 methods of one service over gRPC."""
    routes = Routes(service, server_name, max_request_bytes, admin, memory)
    methods = Methods(service, routes, max_request_bytes)
    hub = Hub(methods.begin, limits or Limits(), most_held_bytes=2 * max_request_bytes)
    return Port(lambda: Http2Connection(hub), hub.group, also=methods.sweep)


class Methods:
    """The gRPC port's table of methods over one service."""

    def __init__(self, service: Service, routes: Routes, max_request_bytes: int) -> None:
        self._service = service
        self._max_bytes = max_request_bytes
        self._scan = Scanner().scan
        self._health = Health(routes, ("", SERVICE))
        methods = {
            **control_methods(routes),
            "ModelInfer": Method("ModelInfer", self._infer),
            "ModelStreamInfer": Method("ModelStreamInfer", self._stream_infer, streams_in=True),
        }
        self._table = {f"/{SERVICE}/{name}".encode(): method for name, method in methods.items()}
        self._table |= self._health.methods()
        self._table |= reflect()

    def begin(self, connection: Http2Connection, event: HeadReceived) -> Call | None:
        """The call of a new stream; None for one that is refused at once."""
        head = event.head
        route = head.route
        if route is None:
            route = head.route = resolve(head, self._table)
        if route.method is None:
            connection.codec.send_headers(event.stream, route.refusal, end=True)
            return None
        return Call(connection, event.stream, route, route.method, self._max_bytes)

    def sweep(self) -> None:
        """To be called about once a second: tells those who watch the server's health."""
        self._health.sweep()

    def _infer(self, call: Call, body: Body) -> None:
        arrival_ns = time.monotonic_ns()
        scanned = self._scan(body)
        model = self._service.model(scanned.name, scanned.version)
        found, tensors = decode(model, scanned)
        done = partial(_finish, call, found.template, scanned.id)
        request = _request(found, tensors, done, arrival_ns)
        call.request = request
        model.submit(request)

    def _stream_infer(self, call: Call, body: Body) -> None:
        arrival_ns = time.monotonic_ns()
        if call.requests is None:
            call.requests = {}
        request_id = b""
        try:
            scanned = self._scan(body)
            request_id = scanned.id
            model = self._service.model(scanned.name, scanned.version)
            found, tensors = decode(model, scanned)
        except EfserveError as exc:
            _send_error(call, exc, request_id)
            return
        request = _request(found, tensors, _ignore, arrival_ns)
        request.done = partial(_finish_streamed, call, found, request_id, id(request))
        call.requests[id(request)] = request
        model.submit(request)


def _ignore(outcome: Outcome) -> None:
    """Stands where the real callback, which needs the request itself, is put next."""


def _request(
    found: GrpcTemplate, tensors: tuple[Wire, ...], done: Callable[[Outcome], None], arrival_ns: int
) -> InferRequest:
    template = found.template
    return InferRequest(
        tensors,
        template.shapes,
        template.rows,
        template.shape_key,
        done,
        template.timeout_us,
        arrival_ns,
        priority=template.priority,
        protocol="GRPC",
    )


def _finish(call: Call, template: Template, request_id: bytes, outcome: Outcome) -> None:
    call.request = None
    if not call.is_open:
        return
    try:
        if isinstance(outcome, EfserveError):
            call.fail(outcome)
        else:
            call.answer(encode(template, request_id, outcome))
    except EfserveError as exc:
        call.fail(exc)
    except Exception:  # the border of one request
        logger.exception("the outputs of model '%s' could not be written", template.model_name)
        call.fail(INTERNAL)


def _finish_streamed(call: Call, found: GrpcTemplate, request_id: bytes, key: int, outcome: Outcome) -> None:
    if not call.is_open or call.requests is None:
        return
    call.requests.pop(key, None)
    error: EfserveError = INTERNAL
    try:
        if not isinstance(outcome, EfserveError):
            parts = encode(found.template, request_id, outcome, final=found.wants_final)
            call.send(streamed(parts))
            return
        error = outcome
    except EfserveError as exc:
        error = exc
    except Exception:  # the border of one request
        logger.exception("the outputs of model '%s' could not be written", found.template.model_name)
    _send_error(call, error, request_id)


def _send_error(call: Call, error: EfserveError, request_id: bytes) -> None:
    """One bad request of a stream is one message, unless the client asked for an end with its status."""
    if call.strict:
        call.fail(error)
    else:
        call.send(stream_error(str(error), request_id))
