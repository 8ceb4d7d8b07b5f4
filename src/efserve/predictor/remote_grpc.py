"""A model on a running KServe v2 server, over gRPC."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from efserve.client.v2 import ModelInfo
from efserve.client.v2_grpc import V2GrpcClient, infer_outputs, infer_request
from efserve.errors import RemoteError
from efserve.predictor.model import Class
from efserve.predictor.remote import Details, read_class, read_config
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec


class GrpcModel:
    """One model of a server. Its scores are ranked there: it alone has the labels."""

    def __init__(self, url: str, name: str, version: str) -> None:
        """Asks the server what the model is; raises UsageError for a bad URL, RemoteError where that fails."""
        self._client = V2GrpcClient(url)
        self._info, details = asyncio.run(self._ask(name, version))
        self.config = read_config(self._info, details)

    def classes(self, inputs: Sequence[Array], output: TensorSpec, top: int) -> list[tuple[Class, ...]]:
        """See `Model`."""
        ranked = self._infer(inputs, {output.name: top}).get(output.name)
        if ranked is None or ranked.dtype != np.object_:
            raise RemoteError(f"the server's answer has no classification of output '{output.name}'")
        return [tuple(map(read_class, row)) for row in np.atleast_2d(ranked)]

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model`."""
        found = self._infer(inputs)
        missing = [spec.name for spec in self.config.outputs if spec.name not in found]
        if missing:
            raise RemoteError(
                f"the answer of '{self._info.name}' lacks output '{missing[0]}'; it has {', '.join(found)}"
            )
        return [found[spec.name] for spec in self.config.outputs]

    def close(self) -> None:
        """See `Model`."""

    def _infer(self, inputs: Sequence[Array], classes: dict[str, int] | None = None) -> dict[str, Array]:
        request = infer_request(self._info.name, self._info.version, self._info.inputs, inputs, classes)
        return infer_outputs(asyncio.run(self._client.infer(request)))

    async def _ask(self, name: str, version: str) -> tuple[ModelInfo, Details]:
        found = await self._client.call("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version))
        answer = await self._client.call("ModelConfig", pb.ModelConfigRequest(name=name, version=version))
        fields = json_format.MessageToDict(answer.config, preserving_proto_field_name=True)
        most = answer.config.max_batch_size
        info = ModelInfo(name, version, found.platform, _specs(found.inputs), _specs(found.outputs), most)
        return info, msgspec.convert(fields, Details)


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    for tensor in tensors:
        if tensor.datatype not in NUMPY_DTYPES:
            raise RemoteError(
                f"tensor '{tensor.name}' has datatype '{tensor.datatype}', which the protocol does not know"
            )
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)
