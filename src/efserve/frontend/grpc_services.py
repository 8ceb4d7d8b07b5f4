"""gRPC's own services: health (`grpc.health.v1`), and reflection in both of its versions."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from efserve.codec.grpc import CallFailed, Status, framed
from efserve.codec.grpc_messages import HEALTH, REFLECTION, SERVICES, file_bytes, message_type
from efserve.errors import InvalidRequest
from efserve.frontend.grpc_call import Call, Method
from efserve.frontend.grpc_control import Question, is_well
from efserve.frontend.routes import Routes
from efserve.inference import Body

_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_READY = Question("GET", ("v2", "health", "ready"))


def _parse(kind: Any, body: Body) -> Any:
    try:
        return kind.FromString(bytes(body))
    except DecodeError as exc:
        raise InvalidRequest(f"failed to parse the {kind.DESCRIPTOR.name}: {exc}") from exc


class Health:
    """Whether the server, under one of its names, is ready; those who watch are told of each change within a second."""

    def __init__(self, routes: Routes, names: tuple[str, ...]) -> None:
        self._routes = routes
        self._names = names
        self._watching: set[Call] = set()
        self._request = message_type(HEALTH, "HealthCheckRequest")
        self._response = message_type(HEALTH, "HealthCheckResponse")

    def methods(self) -> dict[bytes, Method]:
        """Check and Watch by their paths."""
        methods = (Method("Check", self._check), Method("Watch", self._watch))
        return {f"/{HEALTH}.Health/{method.name}".encode(): method for method in methods}

    def _status(self, name: str) -> int:
        if name not in self._names:
            return _SERVICE_UNKNOWN
        return _SERVING if is_well(self._routes, _READY) else _NOT_SERVING

    def _told(self, status: int) -> list[bytes | bytearray | memoryview]:
        return framed([self._response(status=status).SerializeToString()])

    def _check(self, call: Call, body: Body) -> None:
        name = _parse(self._request, body).service
        status = self._status(name)
        if status == _SERVICE_UNKNOWN:
            raise CallFailed(Status.NOT_FOUND, f"this server has no service '{name}'")
        call.answer(self._told(status))

    def _watch(self, call: Call, body: Body) -> None:
        name = _parse(self._request, body).service
        call.state = (name, self._status(name))
        call.on_close = lambda: self._watching.discard(call)
        self._watching.add(call)
        call.send(self._told(call.state[1]))

    def sweep(self) -> None:
        """Tell those who watch what has changed."""
        for call in list(self._watching):
            name, before = call.state
            status = self._status(name)
            if status != before:
                call.state = (name, status)
                call.send(self._told(status))


def reflect() -> dict[bytes, Method]:
    """The methods of server reflection by their paths."""
    return {
        f"/{package}.ServerReflection/ServerReflectionInfo".encode(): Method(
            "ServerReflectionInfo", _reflection(package), streams_in=True
        )
        for package in REFLECTION
    }


def _reflection(package: str) -> Callable[[Call, Body], None]:
    request_type = message_type(package, "ServerReflectionRequest")
    response_type = message_type(package, "ServerReflectionResponse")

    def handle(call: Call, body: Body) -> None:
        request = _parse(request_type, body)
        response = response_type(valid_host=request.host, original_request=request)
        asked = request.WhichOneof("message_request")
        if asked == "list_services":
            for name in SERVICES:
                response.list_services_response.service.add(name=name)
        elif asked in ("file_by_filename", "file_containing_symbol"):
            files = file_bytes(getattr(request, asked), is_symbol=asked == "file_containing_symbol")
            response.file_descriptor_response.file_descriptor_proto.extend(files)
            if not files:
                response.error_response.error_code = Status.NOT_FOUND
                response.error_response.error_message = f"'{getattr(request, asked)}' is not known"
        else:
            response.error_response.error_code = Status.NOT_FOUND
            response.error_response.error_message = "the messages of this server have no extensions"
        call.send(framed([response.SerializeToString()]))

    return handle
