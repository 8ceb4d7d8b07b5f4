"""A model on a running KServe v2 server, over HTTP. Needs no local repository: the server tells all that is needed."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from efserve.client.control import HttpAnswer
from efserve.client.infer import InferBody, infer_body, read_infer
from efserve.client.messages import decode
from efserve.client.v2 import ModelInfo, ServerInfo, V2Client
from efserve.errors import RemoteError
from efserve.model_config import ModelConfig
from efserve.predictor.model import Class, top_classes
from efserve.tensors import Array, TensorSpec


class _Parameter(msgspec.Struct, frozen=True):
    string_value: str = ""


class _Output(msgspec.Struct, frozen=True):
    name: str
    label_filename: str = ""


class Details(msgspec.Struct, frozen=True):
    """What a model's config tells beyond its metadata."""

    output: list[_Output] = []
    parameters: dict[str, _Parameter] = {}


class RemoteModel:
    """One model of a server. Its scores are ranked there where the server can: it alone has the labels."""

    def __init__(self, url: str, name: str, version: str) -> None:
        """Asks the server what the model is; raises UsageError for a bad URL, RemoteError where that fails."""
        self._client = V2Client(url)
        self._server, self._info, answer = asyncio.run(self._ask(name, version))
        details = decode(answer, Details) if answer.status == 200 else Details()
        self.config = read_config(self._info, details)

    def classes(self, inputs: Sequence[Array], output: TensorSpec, top: int) -> list[tuple[Class, ...]]:
        """See `Model`."""
        if "classification" not in self._server.extensions:
            scores = self.outputs(inputs)[self.config.outputs.index(output)]
            return top_classes(np.atleast_2d(scores), (), top)
        parameters = {"classification": top, "binary_data": self._server.binary}
        body = _asking_for(self._body(inputs), [{"name": output.name, "parameters": parameters}])
        answer = asyncio.run(self._client.http.call("POST", f"{self._info.path}/infer", body.data, body.headers))
        if answer.status != 200:
            raise RemoteError(answer.error_text(), answer.status)
        ranked = read_infer(answer, self._info.name, ()).outputs.get(output.name)
        if ranked is None or ranked.dtype != np.object_:
            raise RemoteError(f"the server's answer has no classification of output '{output.name}'")
        return [tuple(map(read_class, row)) for row in np.atleast_2d(ranked)]

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model`."""
        answer = asyncio.run(self._client.infer(self._info, self._body(inputs)))
        return [answer.outputs[spec.name] for spec in self.config.outputs]

    def close(self) -> None:
        """See `Model`."""

    async def _ask(self, name: str, version: str) -> tuple[ServerInfo, ModelInfo, HttpAnswer]:
        server = await self._client.server()
        info = await self._client.model(name, version)
        return server, info, await self._client.http.get(f"{info.path}/config")

    def _body(self, inputs: Sequence[Array]) -> InferBody:
        return infer_body(self._info.inputs, inputs, self._server.binary)


def read_config(info: ModelInfo, details: Details) -> ModelConfig:
    """What the server says, as a config; rows go one by one where it does not tell how many a batch may have."""

    def without_batch(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, dims=spec.dims[1:]) for spec in specs) if info.batches else specs

    return ModelConfig(
        info.name,
        max_batch_size=(info.max_batch_size or 1) if info.batches else 0,
        inputs=without_batch(info.inputs),
        outputs=without_batch(info.outputs),
        label_filenames={output.name: output.label_filename for output in details.output if output.label_filename},
        parameters={key: value.string_value for key, value in details.parameters.items()},
    )


def _asking_for(body: InferBody, outputs: list[dict[str, Any]]) -> InferBody:
    """The same request, but for these outputs only."""
    cut = len(body.data) if body.json_bytes < 0 else body.json_bytes
    message = msgspec.json.decode(body.data[:cut])
    head = msgspec.json.encode({"inputs": message["inputs"], "outputs": outputs})
    return InferBody(head + body.data[cut:], -1 if body.json_bytes < 0 else len(head))


def read_class(text: object) -> Class:
    """The class in `value:index[:label]`."""
    words = (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split(":", 2)
    try:
        return Class(int(words[1]), words[2] if len(words) > 2 else "", float(words[0]))
    except (IndexError, ValueError) as exc:
        raise RemoteError(f"the server's classification {text!r} is not value:index[:label]") from exc
