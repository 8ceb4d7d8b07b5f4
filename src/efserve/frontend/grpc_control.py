"""The small methods over gRPC: each asks one of the HTTP routes in its terms, and tells what it says in protobuf."""

import asyncio
import base64
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from efserve.codec.grpc import CallFailed, Status, framed, status_of_http
from efserve.errors import EfserveError, InvalidRequest, NotFound
from efserve.frontend.grpc_call import INTERNAL, Call, Method
from efserve.frontend.responses import Response
from efserve.frontend.routes import Routes
from efserve.inference import Body
from efserve.triton_service import service_pb2 as pb

logger = logging.getLogger(__name__)

Path = tuple[str, ...]
Message = Any  # of protobuf, which has no types


@dataclass(frozen=True, slots=True)
class Question:
    """A request to a route."""

    method: str
    path: Path
    body: object = None


@dataclass(frozen=True, slots=True)
class Control:
    """One method: its request as a question to a route, the route's JSON as the fields of its answer.

    `flag` names the one field of an answer that says whether the route was well.
    """

    ask: Callable[[Message], Question]
    tell: Callable[[Any], dict[str, Any]] = lambda found: found or {}
    flag: str = ""


def _model(request: Message, *rest: str, version: str = "version") -> Path:
    return ("v2", "models", request.name, *_version(getattr(request, version)), *rest)


def _version(version: str) -> Path:
    return ("versions", version) if version else ()


def _statistics(request: Message) -> Question:
    return Question("GET", _model(request, "stats") if request.name else ("v2", "models", "stats"))


def _repository(action: str) -> Callable[[Message], Question]:
    def ask(request: Message) -> Question:
        parameters = {key: _parameter(value) for key, value in request.parameters.items()}
        return Question("POST", ("v2", "repository", "models", request.model_name, action), {"parameters": parameters})

    return ask


def _parameter(value: Message) -> object:
    """A model-repository parameter in JSON, where bytes are base64."""
    choice = value.WhichOneof("parameter_choice")
    if choice == "bytes_param":
        return base64.b64encode(value.bytes_param).decode()
    return getattr(value, choice) if choice else None


def _memory(kind: str, action: str) -> Callable[[Message], Question]:
    def ask(request: Message) -> Question:
        region = ("region", request.name) if request.name else ()
        return Question("GET" if action == "status" else "POST", ("v2", kind, *region, action))

    return ask


def _register_system(request: Message) -> Question:
    body = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
    return Question("POST", ("v2", "systemsharedmemory", "region", request.name, "register"), body)


def _register_cuda(request: Message) -> Question:
    handle = {"b64": base64.b64encode(request.raw_handle).decode()}
    body = {"raw_handle": handle, "device_id": request.device_id, "byte_size": request.byte_size}
    return Question("POST", ("v2", "cudasharedmemory", "region", request.name, "register"), body)


def _trace(request: Message) -> Question:
    path = ("v2", "models", request.model_name) if request.model_name else ("v2",)
    settings = {key: _setting(list(value.value)) for key, value in request.settings.items()}
    return Question("POST" if settings else "GET", (*path, "trace", "setting"), settings or None)


def _setting(values: list[str]) -> object:
    """A trace setting in JSON: null clears it, only trace_level is a list of several."""
    return None if not values else values if len(values) > 1 else values[0]


def _logging(request: Message) -> Question:
    settings = {key: _parameter(value) for key, value in request.settings.items()}
    return Question("POST" if settings else "GET", ("v2", "logging"), settings or None)


def _log_setting(value: object) -> dict[str, object]:
    return {
        "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param": value
    }


def _listed(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


CONTROLS: dict[str, Control] = {
    "ServerLive": Control(lambda _: Question("GET", ("v2", "health", "live")), flag="live"),
    "ServerReady": Control(lambda _: Question("GET", ("v2", "health", "ready")), flag="ready"),
    "ModelReady": Control(lambda request: Question("GET", _model(request, "ready")), flag="ready"),
    "ServerMetadata": Control(lambda _: Question("GET", ("v2",))),
    "ModelMetadata": Control(lambda request: Question("GET", _model(request))),
    "ModelConfig": Control(lambda request: Question("GET", _model(request, "config")), lambda found: {"config": found}),
    "ModelStatistics": Control(_statistics),
    "RepositoryIndex": Control(
        lambda request: Question("POST", ("v2", "repository", "index"), {"ready": request.ready}),
        lambda found: {"models": found},
    ),
    "RepositoryModelLoad": Control(_repository("load")),
    "RepositoryModelUnload": Control(_repository("unload")),
    "TraceSetting": Control(
        _trace, lambda found: {"settings": {key: {"value": _listed(value)} for key, value in found.items()}}
    ),
    "LogSettings": Control(
        _logging, lambda found: {"settings": {key: _log_setting(value) for key, value in found.items()}}
    ),
}
for _kind, _route, _register in (
    ("System", "systemsharedmemory", _register_system),
    ("Cuda", "cudasharedmemory", _register_cuda),
):
    CONTROLS[f"{_kind}SharedMemoryStatus"] = Control(
        _memory(_route, "status"), lambda found: {"regions": {region["name"]: region for region in found}}
    )
    CONTROLS[f"{_kind}SharedMemoryRegister"] = Control(_register)
    CONTROLS[f"{_kind}SharedMemoryUnregister"] = Control(_memory(_route, "unregister"))


def control_methods(routes: Routes) -> dict[str, Method]:
    """The small methods by their names."""
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    return {
        name: Method(name, _handler(routes, control, service.methods_by_name[name]))
        for name, control in CONTROLS.items()
    }


def _handler(routes: Routes, control: Control, method: Any) -> Callable[[Call, Body], None]:
    request_type, response_type = (getattr(pb, kind.name) for kind in (method.input_type, method.output_type))

    def handle(call: Call, body: Body) -> None:
        try:
            question = control.ask(request_type.FromString(bytes(body)))
        except DecodeError as exc:
            raise InvalidRequest(f"failed to parse the {request_type.DESCRIPTOR.name}: {exc}") from exc
        if control.flag:
            tell(call, {control.flag: is_well(routes, question)})
            return
        text = b"" if question.body is None else msgspec.json.encode(question.body)
        result = routes.ask(
            question.method, question.path, text, authorization=call.authorization, is_local=call.is_local
        )
        if isinstance(result, Response):
            tell(call, control.tell(_found(result)))
        else:
            call.state = asyncio.get_running_loop().create_task(finish(call, result))

    async def finish(call: Call, result: Coroutine[Any, Any, Response]) -> None:
        try:
            tell(call, control.tell(_found(await result)))
        except EfserveError as exc:
            call.fail(exc)
        except Exception:  # the border of one request
            logger.exception("%s failed", method.name)
            call.fail(INTERNAL)

    def tell(call: Call, told: dict[str, Any]) -> None:
        answer = json_format.ParseDict(told, response_type(), ignore_unknown_fields=True)
        call.answer(framed([answer.SerializeToString()]))

    return handle


def is_well(routes: Routes, question: Question) -> bool:
    """Whether a route that anyone may ask, and that has nothing to tell, answers with 200; of an unknown model, no."""
    try:
        result = routes.ask(question.method, question.path, is_local=False)
    except NotFound:
        return False
    return isinstance(result, Response) and result.status == 200


def _found(response: Response) -> Any:
    """The JSON of an answer; raises CallFailed with the text of one that tells an error."""
    found = msgspec.json.decode(response.body) if response.body else None
    if response.status != 200:
        text = found.get("error", "") if isinstance(found, dict) else ""
        raise CallFailed(Status(status_of_http(response.status)), text)
    return found
