"""The v2 routes: which handler a request line means, and the small routes, each a function from request to response."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec

from efserve import __version__
from efserve.codec.compression import inflate
from efserve.codec.v2_json import parse_as
from efserve.codec.v2_models import index_entry, model_metadata, server_metadata, statistics
from efserve.errors import EfserveError, InvalidRequest, NotFound, Unavailable, Unsupported
from efserve.frontend.admin import Admin, Guarded, Methods, Names, Result, SmallRoute
from efserve.frontend.connection import Exchange
from efserve.frontend.heads import Head
from efserve.frontend.infer import InferHandler
from efserve.frontend.memory import MemoryRoutes
from efserve.frontend.responses import (
    INTERNAL_ERROR,
    Response,
    encode,
    error_response,
    json_response,
)
from efserve.frontend.service import Service
from efserve.inference import Body
from efserve.transport.regions import ClientRegions

logger = logging.getLogger(__name__)

Handler = Callable[[Exchange, Body], None]


class Routes:
    """The v2 port's table of routes over one service."""

    def __init__(
        self,
        service: Service,
        server_name: str,
        max_request_bytes: int,
        admin: Admin | None = None,
        memory: ClientRegions | None = None,
    ) -> None:
        self._service = service
        self._server_name = server_name
        self._max_bytes = max_request_bytes
        self._admin = admin or Admin()
        self._memory = MemoryRoutes(memory or ClientRegions())
        self._table = {tuple(route.split("/")): methods for route, methods in self._routes().items()}

    def _routes(self) -> dict[str, Methods]:
        table: dict[str, Methods] = {
            "v2": {"GET": self._server},
            "v2/health/live": {"GET": self._live},
            "v2/health/ready": {"GET": self._ready},
            "v2/models/stats": {"GET": self._statistics},
            "v2/repository/index": {"POST": self._index},
            "v2/efserve/placements": {"GET": self._placements},
        }
        for model in ("v2/models/M", "v2/models/M/versions/V"):
            table[model] = {"GET": self._metadata}
            table[f"{model}/ready"] = {"GET": self._model_ready}
            table[f"{model}/config"] = {"GET": self._config}
            table[f"{model}/stats"] = {"GET": self._statistics}
            table[f"{model}/infer"] = {"POST": _never}
        table.update(self._memory.routes())
        table.update(self._admin.routes(lambda name: self._service.model(name, "")))
        return table

    def resolve(self, head: Head) -> Handler:
        """The handler of every request with this head."""
        method, path = head.method.decode("latin-1"), _path(head.target)
        methods, names = self._find(path)
        if methods is None:
            shown = "/" + "/".join(path)
            return Small(head, self._max_bytes, lambda names, body: error_response(404, f"no route '{shown}'"), {})
        small = methods.get("GET" if method == "HEAD" else method)
        if small is None:
            text = f"method {method} is not allowed here; expected {' or '.join(methods)}"
            return Small(head, self._max_bytes, lambda names, body: error_response(405, text), {})
        if small is _never:
            return InferHandler(self._service, names["M"], names.get("V", ""), head, self._max_bytes)
        if isinstance(small, Guarded):
            return Small(head, self._max_bytes, small.route, names, partial(self._check, head.authorization))
        return Small(head, self._max_bytes, small, names)

    def _check(self, authorization: bytes, exchange: Exchange) -> None:
        self._admin.check(authorization, is_local=exchange.connection.is_local)

    def ask(
        self, method: str, path: tuple[str, ...], body: bytes = b"", *, authorization: bytes = b"", is_local: bool
    ) -> Result:
        """What a small route answers a client that did not come over HTTP, who is told of as `Admin.check` needs it.

        Raises EfserveError as the route does.
        """
        logger.debug("gRPC request: %s /%s", method, "/".join(path))
        methods, names = self._find(path)
        small = methods.get(method) if methods else None
        if small is None:
            raise Unsupported(f"this server does not offer {method} /{'/'.join(path)}")
        if isinstance(small, Guarded):
            self._admin.check(authorization, is_local=is_local)
            small = small.route
        return small(names, body)

    def _find(self, path: tuple[str, ...]) -> tuple[Methods | None, Names]:
        found = self._table.get(path)  # fixed routes first: a model may not shadow /v2/models/stats
        if found is not None and not {"M", "V", "R"} & set(path):
            return found, {}
        for route, methods in self._table.items():
            if len(route) == len(path) and all(
                want in ("M", "V", "R") or want == got for want, got in zip(route, path, strict=True)
            ):
                return methods, {want: got for want, got in zip(route, path, strict=True) if want in ("M", "V", "R")}
        return None, {}

    # The server

    def _server(self, names: Names, body: Body) -> Response:
        return json_response(server_metadata(self._server_name, __version__))

    def _live(self, names: Names, body: Body) -> Response:
        return Response() if self._service.live() else error_response(400, "server is not live")

    def _ready(self, names: Names, body: Body) -> Response:
        return Response() if self._service.ready() else error_response(400, "server is not ready")

    def _index(self, names: Names, body: Body) -> Response:
        try:
            request = parse_as(IndexRequest, body, "the repository index request") if len(body) else IndexRequest()
        except InvalidRequest as exc:
            if isinstance(exc.__cause__, (msgspec.ValidationError, RecursionError)):
                raise InvalidRequest("Invalid value for 'ready': expected a boolean") from exc
            raise
        entries = self._service.index(request.ready)
        return json_response([index_entry(e.name, e.version, e.state, e.reason) for e in entries])

    def _placements(self, names: Names, body: Body) -> Response:
        """Ours alone: other servers of the protocol do not have it."""
        return json_response(self._service.placements())

    # Models

    def _metadata(self, names: Names, body: Body) -> Response:
        model = self._service.model(names["M"], names.get("V", ""))
        versions = [m.version for m in self._service.models() if m.config.name == model.config.name]
        return json_response(model_metadata(model.config, model.engine, versions or [model.version]))

    def _model_ready(self, names: Names, body: Body) -> Response:
        try:
            self._service.model(names["M"], names.get("V", ""))
        except Unavailable:
            return error_response(400, "Model version not ready")
        except NotFound:  # so it is also said of a model of which no version is ready
            if "V" in names or all(entry.name != names["M"] for entry in self._service.index(only_ready=False)):
                raise
            return error_response(400, "Model version not ready")
        return Response()

    def _config(self, names: Names, body: Body) -> Response:
        # Here, because it brings protobuf, which takes a quarter of a second to load.
        from efserve.pbtxt import config_json

        return json_response(config_json(self._service.model(names["M"], names.get("V", "")).config))

    def _statistics(self, names: Names, body: Body) -> Response:
        models = self._service.models()
        if "M" in names:
            models = [model for model in models if model.config.name == names["M"]]
            if not models:
                raise InvalidRequest(f"requested model '{names['M']}' is not available")
        if "V" in names:
            models = [model for model in models if model.version == names["V"]]
            if not models:
                raise InvalidRequest(f"requested model version is not available for model '{names['M']}'")
        return json_response(statistics((model.config.name, model.version, model.counters) for model in models))


class IndexRequest(msgspec.Struct):
    """Body of the repository index request."""

    ready: bool = False


class Small:
    """Handler of the small routes: decodes the body, encodes the answer, turns errors into answers.

    Answers are never compressed: Triton compresses inferences alone, and its asyncio client expects no more.
    A route that takes time answers with a coroutine, which goes on even if the client goes away.
    """

    __slots__ = ("_encoding", "_guard", "_max_bytes", "_names", "_route", "_with_body")

    def __init__(
        self,
        head: Head,
        max_bytes: int,
        route: SmallRoute,
        names: Names,
        guard: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self._route = route
        self._names = names
        self._guard = guard
        self._max_bytes = max_bytes
        self._with_body = head.method != b"HEAD"
        self._encoding = head.content_encoding.decode("latin-1")

    def __call__(self, exchange: Exchange, body: Body) -> None:
        result = self._begin(exchange, body)
        if isinstance(result, Response):
            exchange.respond(encode(result, with_body=self._with_body))
        else:
            exchange.task = asyncio.get_running_loop().create_task(self._finish(exchange, result))

    def _begin(self, exchange: Exchange, body: Body) -> Result:
        method, target = exchange.head.method, exchange.head.target
        logger.debug("HTTP request: %s %s", method.decode("latin-1"), target.decode("latin-1"))
        try:
            self._guard(exchange)
            return self._route(self._names, inflate(body, self._encoding, self._max_bytes))
        except EfserveError as exc:
            return error_response(exc.http_status, str(exc))

    async def _finish(self, exchange: Exchange, result: Coroutine[Any, Any, Response]) -> None:
        try:
            response = await result
        except EfserveError as exc:
            response = error_response(exc.http_status, str(exc))
        except Exception:  # the border of one request
            logger.exception("request failed: %s", exchange.head.target.decode("latin-1"))
            exchange.respond(INTERNAL_ERROR)
            return
        exchange.respond(encode(response, with_body=self._with_body))


def _path(target: bytes) -> tuple[str, ...]:
    """Segments of a request target, decoded; its query is dropped."""
    text = target.split(b"?", 1)[0].split(b"#", 1)[0].decode("latin-1")
    if not text.startswith("/") and "://" in text:  # absolute form, as proxies send it
        text = "/" + text.split("://", 1)[1].partition("/")[2]
    return tuple(unquote(segment) for segment in text.strip("/").split("/"))


def _never(names: Names, body: Body) -> Response:
    """Stands in the table for inference, which has a handler of its own."""
    raise NotFound("inference has a handler of its own")
