"""The v2 protocol from the client's side, over gRPC: calls with a deadline, requests and answers in protobuf."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from efserve.client.endpoint import SYSTEM_TRUST, GrpcEndpoint, Trust, reason_of
from efserve.client.grpc import Channel, Reply, call_head
from efserve.client.infer import InferAnswer, check_outputs, ranked
from efserve.client.memory import Places, SharedRegion, Span
from efserve.client.v2 import ModelInfo, ServerInfo, summed, tensor_specs
from efserve.codec.grpc import Status, framed
from efserve.errors import EfserveError, RemoteError
from efserve.inference import Body
from efserve.pbtxt import message_json
from efserve.records import ServerCounters
from efserve.tensors import NUMPY_DTYPES, Array, Shape, byte_size, to_array, to_wire
from efserve.triton_service import service_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
Message = Any  # of protobuf, which has no types


class V2GrpcClient:
    """A `V2Server` over gRPC, a new connection per call; tensors always travel in binary."""

    def __init__(self, url: str, deadline_s: float = 30.0, trust: Trust = SYSTEM_TRUST) -> None:
        """Raises UsageError for a URL that is not gRPC's."""
        self.endpoint = GrpcEndpoint(url, trust)
        self.deadline_s = deadline_s
        self.url, self.host, self.port = self.endpoint.url, self.endpoint.host, self.endpoint.port

    def __repr__(self) -> str:
        return f"<V2GrpcClient {self.url}>"

    async def server(self) -> ServerInfo:
        """See `V2Server`."""
        found = await self.call("ServerMetadata", pb.ServerMetadataRequest())
        return ServerInfo(found.name, found.version, tuple(found.extensions))

    async def ready_models(self) -> list[str] | None:
        """See `V2Server`."""
        try:
            found = await self.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
        except RemoteError as exc:
            if exc.status == Status.UNIMPLEMENTED:
                return None
            raise
        return list(dict.fromkeys(model.name for model in found.models))

    async def model(self, name: str, version: str = "") -> ModelInfo:
        """See `V2Server`."""
        found = await self.call("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version))
        try:
            config = (await self.call("ModelConfig", pb.ModelConfigRequest(name=name, version=version))).config
        except RemoteError as exc:
            if exc.status != Status.UNIMPLEMENTED:
                raise
            config = None
        return ModelInfo(
            name=name,
            version=version,
            platform=found.platform,
            inputs=tensor_specs(found.inputs),
            outputs=tensor_specs(found.outputs),
            max_batch_size=None if config is None else config.max_batch_size,
            config=None if config is None else message_json(config),
        )

    async def counters(self, model: ModelInfo) -> ServerCounters | None:
        """See `V2Server`."""
        request = pb.ModelStatisticsRequest(name=model.name, version=model.version)
        try:
            totals = (await self.call("ModelStatistics", request)).model_stats
        except RemoteError as exc:
            if exc.status == Status.UNIMPLEMENTED:
                return None
            raise
        return summed(totals)

    async def infer(self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True) -> InferAnswer:
        """See `V2Server`."""
        answer = await self.call("ModelInfer", infer_request(model, arrays))
        outputs = infer_outputs(answer)
        check_outputs(_described(answer), model.name, model.outputs)
        return InferAnswer(outputs, sum(map(len, answer.raw_output_contents)))

    async def classify(
        self, model: ModelInfo, arrays: Sequence[Array], output: str, count: int, *, binary: bool = True
    ) -> Array:
        """See `V2Server`."""
        answer = await self.call("ModelInfer", infer_request(model, arrays, {output: count}))
        return ranked(infer_outputs(answer), output)

    def request(
        self, model: ModelInfo, arrays: Sequence[Array], *, binary: bool = True, places: Places | None = None
    ) -> bytes:
        """See `V2Server`."""
        message = infer_request(model, arrays) if places is None else memory_request(model, arrays, places)
        return b"".join(framed([message.SerializeToString()]))

    async def register(self, region: SharedRegion) -> None:
        """See `V2Server`."""
        about = {"name": region.name, "key": region.key, "offset": 0, "byte_size": region.byte_size}
        await self.call("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(**about))

    async def unregister(self, region: SharedRegion) -> None:
        """See `V2Server`."""
        request = pb.SystemSharedMemoryUnregisterRequest(name=region.name)
        await self.call("SystemSharedMemoryUnregister", request)

    async def infer_in_place(self, model: ModelInfo, arrays: Sequence[Array], places: Places) -> None:
        """See `V2Server`."""
        answer = await self.call("ModelInfer", memory_request(model, arrays, places))
        check_outputs(_described(answer), model.name, model.outputs)

    async def call(self, method: str, request: Message) -> Message:
        """One unary call: its request's message to its answer's."""
        answers: list[Message] = []
        await self._talk(method, [request], answers.append)
        if not answers:
            raise RemoteError(f"{self.endpoint.url}: {method} has no answer")
        return answers[0]

    async def stream(self, requests: Iterable[Message], on_answer: Callable[[Message], None]) -> None:
        """Send all requests on one ModelStreamInfer; `on_answer` gets its messages as they come."""
        await self._talk("ModelStreamInfer", requests, on_answer)

    async def _talk(self, method: str, requests: Iterable[Message], on_answer: Callable[[Message], None]) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[int, str]] = loop.create_future()
        answer_type = getattr(pb, _SERVICE.methods_by_name[method].output_type.name)
        url = self.endpoint.url

        def end(status: int, text: str) -> None:
            if not ended.done():
                ended.set_result((status, text))

        def take(message: Body) -> None:
            try:
                on_answer(answer_type.FromString(bytes(message)))
            except DecodeError as exc:
                end(Status.INTERNAL, f"the answer to {method} is not what the v2 protocol says: {exc}")

        channel = Channel(lambda: None, lambda _, text: end(Status.UNAVAILABLE, text))
        try:
            async with asyncio.timeout(self.deadline_s):
                await loop.create_connection(lambda: channel, self.host, self.port, ssl=self.endpoint.tls)
                stream = channel.begin(call_head(self.endpoint, method), Reply(take, end))
                for request in requests:
                    channel.send(stream, b"".join(framed([request.SerializeToString()])), last=False)
                channel.send(stream, b"", last=True)
                status, text = await ended
        except TimeoutError as exc:
            raise RemoteError(f"{url}: no answer to {method} within {self.deadline_s:g} s") from exc
        except OSError as exc:
            raise RemoteError(f"cannot reach a server at {url}: {reason_of(exc)}") from exc
        finally:
            channel.drop()
        if status != Status.OK:
            raise RemoteError(text or f"{method} failed with gRPC status {status}", status)


def infer_request(model: ModelInfo, arrays: Sequence[Array], classes: Mapping[str, int] | None = None) -> Message:
    """A ModelInferRequest; arrays are in the order of the model's inputs, shapes whole.

    `classes` asks for these outputs only, each as so many best classes.
    """
    request = pb.ModelInferRequest(model_name=model.name, model_version=model.version)
    for spec, array in zip(model.inputs, arrays, strict=True):
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        request.raw_input_contents.append(bytes(to_wire(array)))
    for output, count in (classes or {}).items():
        request.outputs.add(name=output).parameters["classification"].int64_param = count
    return request


def memory_request(model: ModelInfo, arrays: Sequence[Array], places: Places) -> Message:
    """A ModelInferRequest whose tensors lie in shared memory; the arrays tell the shapes of the inputs."""
    request = pb.ModelInferRequest(model_name=model.name, model_version=model.version)
    for spec, array, span in zip(model.inputs, arrays, places.inputs, strict=True):
        _put(request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape), span)
    for spec, span in zip(model.outputs, places.outputs, strict=True):
        _put(request.outputs.add(name=spec.name), span)
    return request


def _put(tensor: Message, span: Span) -> None:
    for key, value in span.parameters.items():
        if isinstance(value, str):
            tensor.parameters[key].string_param = value
        else:
            tensor.parameters[key].int64_param = value


def _described(answer: Message) -> dict[str, tuple[str, Shape]]:
    return {output.name: (output.datatype, tuple(output.shape)) for output in answer.outputs}


def infer_outputs(answer: Message) -> dict[str, Array]:
    """The outputs of a ModelInferResponse by name; raises RemoteError for tensors that do not fit their description."""
    if len(answer.outputs) != len(answer.raw_output_contents):
        raise RemoteError(
            f"the answer has {len(answer.outputs)} outputs, but {len(answer.raw_output_contents)} tensors"
        )
    found: dict[str, Array] = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        shape, what = tuple(output.shape), f"output '{output.name}'"
        if output.datatype not in NUMPY_DTYPES:
            raise RemoteError(f"{what} has datatype '{output.datatype}', which the protocol does not know")
        if output.datatype != "BYTES" and (min(shape, default=0) < 0 or len(data) != byte_size(output.datatype, shape)):
            raise RemoteError(f"{what} of shape {list(shape)} {output.datatype} has {len(data)} bytes")
        try:
            found[output.name] = to_array(data, output.datatype, shape, what)
        except EfserveError as exc:
            raise RemoteError(str(exc)) from exc
    return found


def payload_bytes(message: Body) -> int:
    """Bytes of tensors in a serialized ModelInferResponse; -1 when it is none."""
    try:
        return sum(map(len, pb.ModelInferResponse.FromString(bytes(message)).raw_output_contents))
    except DecodeError:
        return -1
