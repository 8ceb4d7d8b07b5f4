"""The routes that change the server itself: models, trace and log settings. And who may use such routes."""

import hmac
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from efserve.codec.v2_json import parse_as
from efserve.errors import Forbidden, InvalidRequest, NotFound, Unauthorized, Unavailable, Unsupported, UsageError
from efserve.frontend.responses import Response, json_response
from efserve.frontend.service import LoadOverrides, LogSettings, ModelControl, TraceSettings
from efserve.inference import Body

Names = dict[str, str]  # what stands for M, V and R of a route
Result = Response | Coroutine[Any, Any, Response]
SmallRoute = Callable[[Names, Body], Result]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A route for administrators only."""

    route: SmallRoute


Methods = dict[str, SmallRoute | Guarded]  # of one path


class LoadRequest(msgspec.Struct):
    """Body of a load request."""

    parameters: dict[str, str] = {}


class UnloadParameters(msgspec.Struct):
    """What an unload request may say; no model here has dependents."""

    unload_dependents: bool = False


class UnloadRequest(msgspec.Struct):
    """Body of an unload request."""

    parameters: UnloadParameters = msgspec.field(default_factory=UnloadParameters)


@dataclass(frozen=True, slots=True)
class Admin:
    """Administrators' routes; with a token for whoever has it, without one for clients on this machine."""

    control: ModelControl | None = None
    token: str = ""
    traces: TraceSettings | None = None
    logs: LogSettings | None = None

    def routes(self, find: Callable[[str], object]) -> dict[str, Methods]:
        """Path -> method -> route; `find` raises for an unknown model."""

        def trace(names: Names, body: Body) -> Response:
            model = names.get("M", "")
            if model:
                _check_known(find, model)
            if self.traces is None:
                raise Unsupported("trace settings are not offered by this server")
            if len(body):
                self.traces.update(parse_as(dict[str, Any], body, "the trace settings"), model)
            return json_response(self.traces.get(model))

        def logs(names: Names, body: Body) -> Response:
            if self.logs is None:
                raise Unsupported("log settings are not offered by this server; use its command line")
            if len(body):
                self.logs.update(parse_as(dict[str, Any], body, "the log settings"))
            return json_response(self.logs.get())

        return {
            "v2/repository/models/M/load": {"POST": Guarded(self.load)},
            "v2/repository/models/M/unload": {"POST": Guarded(self.unload)},
            "v2/trace/setting": {"GET": _without_body(trace), "POST": Guarded(trace)},
            "v2/models/M/trace/setting": {"GET": _without_body(trace), "POST": Guarded(trace)},
            "v2/logging": {"GET": Guarded(_without_body(logs)), "POST": Guarded(logs)},
        }

    def check(self, authorization: bytes, *, is_local: bool) -> None:
        """Raise Unauthorized or Forbidden unless a client with this authorization may use a guarded route.

        `is_local`: it is on this machine.
        """
        if self.token:
            if not hmac.compare_digest(authorization, b"Bearer " + self.token.encode()):
                raise Unauthorized("this needs the header 'Authorization: Bearer <the server's token>'")
        elif not is_local:
            raise Forbidden(
                "only for clients on the server's machine; start it with --admin-token-file to allow others"
            )

    def load(self, names: Names, body: Body) -> Result:
        """POST v2/repository/models/M/load"""
        request = parse_as(LoadRequest, body, "the load request") if len(body) else LoadRequest()
        return _when_done(self._control().load(names["M"], _overrides(request.parameters)))

    def unload(self, names: Names, body: Body) -> Result:
        """POST v2/repository/models/M/unload"""
        if len(body):
            parse_as(UnloadRequest, body, "the unload request")
        return _when_done(self._control().unload(names["M"]))

    def _control(self) -> ModelControl:
        if self.control is None:
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")
        return self.control


def read_token(path: Path | None) -> str:
    """The token in the file; UsageError where it cannot be read or holds none."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--admin-token-file {path} cannot be read: {exc}") from exc
    if not token:
        raise UsageError(f"--admin-token-file {path} is empty; expected a token, such as from `openssl rand -hex 32`")
    return token


def _check_known(find: Callable[[str], object], model: str) -> None:
    try:
        find(model)
    except NotFound as exc:
        raise InvalidRequest(f"Request for unknown model : {model}") from exc


def _without_body(route: SmallRoute) -> SmallRoute:
    """The route for GET, whose body means nothing."""
    return lambda names, body: route(names, b"")


async def _when_done(work: Coroutine[Any, Any, None]) -> Response:
    await work
    return Response()


def _overrides(parameters: dict[str, str]) -> LoadOverrides:
    files = {}
    for key, value in parameters.items():
        if key.startswith("file:"):
            try:
                files[key.removeprefix("file:")] = b64decode(value, validate=True)
            except (Base64Error, ValueError) as exc:
                raise InvalidRequest(f"load parameter '{key}' is not valid base64: {exc}") from exc
        elif key != "config":
            raise InvalidRequest(f"Unrecognized load parameter '{key}'; expected config or file:<version>/<file name>")
    return LoadOverrides(parameters.get("config", ""), files)
