"""The v2 protocol from the client's side, over HTTP: metadata, statistics, inference requests and their answers.

Knows what the messages mean; how they travel is `control.py` and `http.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from efserve.client.control import HttpAnswer, HttpClient
from efserve.client.endpoint import SYSTEM_TRUST, Trust
from efserve.client.http import prepare
from efserve.client.infer import InferAnswer, InferBody, infer_body, memory_body, ranked, read_described, read_infer
from efserve.client.memory import Places, SharedRegion
from efserve.client.messages import (
    ConfigMessage,
    IndexEntry,
    ModelMessage,
    ServerMessage,
    Statistics,
    decode,
)
from efserve.errors import RemoteError
from efserve.records import ServerCounters
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

BINARY_EXTENSION = "binary_tensor_data"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """`GET /v2`."""

    name: str
    version: str
    extensions: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """True when tensors may travel in binary."""
        return BINARY_EXTENSION in self.extensions


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """`GET /v2/models/M`, and from its config whether the first -1 of each shape is the batch (None: no config)."""

    name: str
    version: str  # as asked for; empty: the server's latest
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None
    config: dict[str, Any] | None = None  # as the server tells it

    @property
    def batches(self) -> bool:
        """True when the first dimension of every tensor is the batch; without a config, when all of them are free."""
        if self.max_batch_size is not None:
            return self.max_batch_size >= 1
        return all(spec.dims[:1] == (-1,) for spec in (*self.inputs, *self.outputs))

    @property
    def path(self) -> str:
        """Path of this version of the model."""
        return model_path(self.name, self.version)


def model_path(name: str, version: str = "") -> str:
    """`/v2/models/M[/versions/V]`."""
    return f"/v2/models/{quote(name, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


class V2Server(Protocol):
    """A v2 server as a client sees it, over whatever transport.

    Every method raises RemoteError with the server's own text when it refuses. Arrays are in the order of the model's
    inputs, shapes whole; `binary` False: as JSON, which only HTTP has.
    """

    @property
    def url(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...

    async def server(self) -> ServerInfo:
        """What the server is; RemoteError also when it does not speak v2."""

    async def ready_models(self) -> list[str] | None:
        """Names of the models that are ready, in the server's order; None when it has no repository index."""

    async def model(self, name: str, version: str = "") -> ModelInfo:
        """Names, datatypes and shapes of a model; from its config, where there is one, whether it batches."""

    async def counters(self, model: ModelInfo) -> ServerCounters | None:
        """The server's own statistics of a model, summed over the versions it lists; None when it keeps none."""

    async def infer(self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True) -> InferAnswer:
        """Run the model once, and check the answer against its metadata."""

    async def classify(
        self, model: ModelInfo, arrays: Sequence[Array], output: str, count: int, *, binary: bool = True
    ) -> Array:
        """The best `count` classes of each row by an output's scores: BYTES `score:index[:label]` [rows, count]."""

    def request(
        self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True, places: Places | None = None
    ) -> bytes:
        """An inference as a whole message for a `Connection` to this server; with `places`, in shared memory."""

    async def register(self, region: SharedRegion) -> None:
        """Let the server use this memory."""

    async def unregister(self, region: SharedRegion) -> None:
        """The server uses it no more."""

    async def infer_in_place(self, model: ModelInfo, arrays: Sequence[Array], places: Places) -> None:
        """Run the model on inputs in shared memory, and check what the answer tells of its outputs."""


class V2Client:
    """A `V2Server` over HTTP."""

    def __init__(self, url: str, deadline_s: float = 30.0, trust: Trust = SYSTEM_TRUST) -> None:
        """Raises UsageError for a URL that is not HTTP."""
        self.http = HttpClient(url, deadline_s, trust)
        self.url = self.http.endpoint.url
        self.host, self.port = self.http.endpoint.host, self.http.endpoint.port

    def __repr__(self) -> str:
        return f"<V2Client {self.url}>"

    async def server(self) -> ServerInfo:
        """See `V2Server`."""
        answer = await self.http.get("/v2")
        try:
            found = msgspec.json.decode(answer.body, type=ServerMessage) if answer.status == 200 else None
        except msgspec.DecodeError:
            found = None
        if found is None:
            raise RemoteError(
                f"{self.url} is no KServe v2 server: GET /v2 answered {answer.status} "
                f"{answer.content_type or 'without a content type'}; is it the right port?",
                answer.status,
            )
        return ServerInfo(found.name, found.version, tuple(found.extensions))

    async def ready_models(self) -> list[str] | None:
        """See `V2Server`."""
        answer = await self.http.post_json("/v2/repository/index", {})
        if answer.status != 200:
            return None
        entries = decode(answer, list[IndexEntry])
        return list(dict.fromkeys(entry.name for entry in entries if entry.state == "READY"))

    async def model(self, name: str, version: str = "") -> ModelInfo:
        """See `V2Server`."""
        found = decode(_good(await self.http.get(model_path(name, version))), ModelMessage)
        config = await self.http.get(model_path(name, version) + "/config")
        known = config.status == 200
        return ModelInfo(
            name=name,
            version=version,
            platform=found.platform,
            inputs=tensor_specs(found.inputs),
            outputs=tensor_specs(found.outputs),
            max_batch_size=decode(config, ConfigMessage).max_batch_size if known else None,
            config=decode(config, dict[str, Any]) if known else None,
        )

    async def counters(self, model: ModelInfo) -> ServerCounters | None:
        """See `V2Server`."""
        answer = await self.http.get(model.path + "/stats")
        if answer.status != 200:
            return None
        return summed(decode(answer, Statistics).model_stats)

    async def infer(self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True) -> InferAnswer:
        """See `V2Server`."""
        return await self._infer(model, infer_body(model.inputs, arrays, binary), model.outputs)

    async def classify(
        self, model: ModelInfo, arrays: Sequence[Array], output: str, count: int, *, binary: bool = True
    ) -> Array:
        """See `V2Server`."""
        wanted = {"name": output, "parameters": {"classification": count, "binary_data": binary}}
        answer = await self._infer(model, infer_body(model.inputs, arrays, binary, [wanted]), ())
        return ranked(answer.outputs, output)

    def request(
        self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True, places: Places | None = None
    ) -> bytes:
        """See `V2Server`."""
        if places is None:
            body = infer_body(model.inputs, arrays, binary)
        else:
            body = memory_body(model.inputs, arrays, model.outputs, places)
        return prepare(self.http.endpoint, "POST", model.path + "/infer", body.data, body.headers)

    async def register(self, region: SharedRegion) -> None:
        """See `V2Server`."""
        about = {"key": region.key, "offset": 0, "byte_size": region.byte_size}
        _good(await self.http.post_json(f"/v2/systemsharedmemory/region/{region.name}/register", about))

    async def unregister(self, region: SharedRegion) -> None:
        """See `V2Server`."""
        _good(await self.http.post_json(f"/v2/systemsharedmemory/region/{region.name}/unregister", {}))

    async def infer_in_place(self, model: ModelInfo, arrays: Sequence[Array], places: Places) -> None:
        """See `V2Server`."""
        body = memory_body(model.inputs, arrays, model.outputs, places)
        answer = await self.http.call("POST", model.path + "/infer", body.data, body.headers)
        read_described(_good(answer), model.name, model.outputs)

    async def _infer(self, model: ModelInfo, body: InferBody, outputs: Sequence[TensorSpec]) -> InferAnswer:
        answer = await self.http.call("POST", model.path + "/infer", body.data, body.headers)
        return read_infer(_good(answer), model.name, outputs)


def _good(answer: HttpAnswer) -> HttpAnswer:
    if answer.status != 200:
        raise RemoteError(answer.error_text(), answer.status)
    return answer


def summed(totals: Iterable[Any]) -> ServerCounters | None:
    """The statistics of a model's versions, in JSON or protobuf, as one; None without any."""
    totals = list(totals)
    if not totals:
        return None
    return ServerCounters(
        requests=sum(t.inference_stats.success.count for t in totals),
        inferences=sum(t.inference_count for t in totals),
        executions=sum(t.execution_count for t in totals),
        queue_ns=sum(t.inference_stats.queue.ns for t in totals),
        compute_input_ns=sum(t.inference_stats.compute_input.ns for t in totals),
        compute_infer_ns=sum(t.inference_stats.compute_infer.ns for t in totals),
        compute_output_ns=sum(t.inference_stats.compute_output.ns for t in totals),
    )


class _Tensor(Protocol):
    """A tensor in a model's metadata, in JSON or protobuf."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


def tensor_specs(tensors: Iterable[_Tensor]) -> tuple[TensorSpec, ...]:
    """The tensors of a model's metadata; RemoteError for a datatype that the protocol does not know."""
    specs = []
    for tensor in tensors:
        if tensor.datatype not in NUMPY_DTYPES:
            raise RemoteError(
                f"tensor '{tensor.name}' has datatype '{tensor.datatype}', which the protocol does not know"
            )
        specs.append(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)))
    return tuple(specs)
