"""A model on a running KServe v2 server, over HTTP or gRPC. Needs no repository: the server tells all."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from efserve.client.endpoint import SYSTEM_TRUST, Trust
from efserve.client.server import v2_server
from efserve.client.v2 import ModelInfo, ServerInfo
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

    def __init__(self, url: str, name: str, version: str, trust: Trust = SYSTEM_TRUST) -> None:
        """Asks the server what the model is; raises UsageError for a bad URL, RemoteError where that fails."""
        self._client = v2_server(url, trust=trust)
        self._server, self._info = asyncio.run(self._ask(name, version))
        try:
            details = msgspec.convert(self._info.config or {}, Details)
        except msgspec.ValidationError as exc:
            raise RemoteError(f"the config of '{name}' is not what the v2 protocol says: {exc}") from exc
        self.config = read_config(self._info, details)

    def classes(self, inputs: Sequence[Array], output: TensorSpec, top: int) -> list[tuple[Class, ...]]:
        """See `Model`."""
        if "classification" not in self._server.extensions:
            scores = self.outputs(inputs)[self.config.outputs.index(output)]
            return top_classes(np.atleast_2d(scores), (), top)
        work = self._client.classify(self._info, inputs, output.name, top, binary=self._server.binary)
        return [tuple(map(read_class, row)) for row in asyncio.run(work)]

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model`."""
        answer = asyncio.run(self._client.infer(self._info, inputs, binary=self._server.binary))
        return [answer.outputs[spec.name] for spec in self.config.outputs]

    def close(self) -> None:
        """See `Model`."""

    async def _ask(self, name: str, version: str) -> tuple[ServerInfo, ModelInfo]:
        return await self._client.server(), await self._client.model(name, version)


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


def read_class(text: object) -> Class:
    """The class in `value:index[:label]`."""
    words = (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split(":", 2)
    try:
        return Class(int(words[1]), words[2] if len(words) > 2 else "", float(words[0]))
    except (IndexError, ValueError) as exc:
        raise RemoteError(f"the server's classification {text!r} is not value:index[:label]") from exc
