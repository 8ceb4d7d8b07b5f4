"""The v2 protocol from the client's side, over HTTP: metadata, statistics, inference requests and their answers.

Knows what the messages mean; how they travel is `control.py` and `http.py`.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from efserve.client.control import HttpAnswer, HttpClient
from efserve.client.infer import InferAnswer, InferBody, read_infer
from efserve.client.messages import (
    ConfigMessage,
    IndexEntry,
    ModelMessage,
    ServerMessage,
    Statistics,
    TensorMessage,
    decode,
)
from efserve.errors import RemoteError
from efserve.records import ServerCounters
from efserve.tensors import NUMPY_DTYPES, TensorSpec

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


class V2Client:
    """Asks one v2 server. Every method raises RemoteError with the server's own text when it refuses."""

    def __init__(self, url: str, deadline_s: float = 30.0) -> None:
        """Raises UsageError for a URL that is not HTTP."""
        self.http = HttpClient(url, deadline_s)

    async def server(self) -> ServerInfo:
        """What the server is; RemoteError also when it does not speak v2."""
        answer = await self.http.get("/v2")
        try:
            found = msgspec.json.decode(answer.body, type=ServerMessage) if answer.status == 200 else None
        except msgspec.DecodeError:
            found = None
        if found is None:
            raise RemoteError(
                f"{self.http.endpoint.url} is no KServe v2 server: GET /v2 answered {answer.status} "
                f"{answer.content_type or 'without a content type'}; is it the right port?",
                answer.status,
            )
        return ServerInfo(found.name, found.version, tuple(found.extensions))

    async def ready_models(self) -> list[str] | None:
        """Names of the models that are ready, in the server's order; None when it has no repository index."""
        answer = await self.http.post_json("/v2/repository/index", {})
        if answer.status != 200:
            return None
        entries = decode(answer, list[IndexEntry])
        return list(dict.fromkeys(entry.name for entry in entries if entry.state == "READY"))

    async def model(self, name: str, version: str = "") -> ModelInfo:
        """Names, datatypes and shapes of a model; from its config, where there is one, whether it batches."""
        found = decode(_good(await self.http.get(model_path(name, version))), ModelMessage)
        config = await self.http.get(model_path(name, version) + "/config")
        known = config.status == 200
        return ModelInfo(
            name=name,
            version=version,
            platform=found.platform,
            inputs=_specs(found.inputs),
            outputs=_specs(found.outputs),
            max_batch_size=decode(config, ConfigMessage).max_batch_size if known else None,
            config=decode(config, dict[str, Any]) if known else None,
        )

    async def counters(self, model: ModelInfo) -> ServerCounters | None:
        """The server's own statistics of a model, summed over the versions it lists; None when it keeps none."""
        answer = await self.http.get(model.path + "/stats")
        if answer.status != 200:
            return None
        totals = decode(answer, Statistics).model_stats
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

    async def infer(self, model: ModelInfo, body: InferBody) -> InferAnswer:
        """Run the model once, and check the answer against its metadata."""
        answer = await self.http.call("POST", model.path + "/infer", body.data, body.headers)
        return read_infer(_good(answer), model.name, model.outputs)


def _good(answer: HttpAnswer) -> HttpAnswer:
    if answer.status != 200:
        raise RemoteError(answer.error_text(), answer.status)
    return answer


def _specs(tensors: list[TensorMessage]) -> tuple[TensorSpec, ...]:
    for tensor in tensors:
        if tensor.datatype not in NUMPY_DTYPES:
            raise RemoteError(
                f"tensor '{tensor.name}' has datatype '{tensor.datatype}', which the protocol does not know"
            )
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)
