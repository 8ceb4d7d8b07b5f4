"""What a benchmark sends and to whom: the server found, its models, the prepared requests of each."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from efserve.client.memory import Places
from efserve.client.v2 import ModelInfo, ServerInfo, V2Server
from efserve.errors import MeasurementFailed, RemoteError, UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.datafile import from_file
from efserve.loadtest.images import from_folder
from efserve.loadtest.inputs import generated, parse_shapes, sample_dims
from efserve.loadtest.job import Traffic
from efserve.loadtest.shared_memory import in_shared_memory
from efserve.records import LoadedModel, ServerCounters, Target
from efserve.tensors import Array


@dataclass(frozen=True, slots=True)
class TargetModel:
    """A model of the server, found and tried with one request."""

    client: V2Server
    info: ModelInfo
    arrays: tuple[tuple[Array, ...], ...]  # of each request
    binary: bool
    places: tuple[Places, ...]  # in shared memory, of each request; empty: tensors are in the messages
    traffic: Traffic
    inputs: tuple[str, ...]  # "name DATATYPE [shape of one request]"

    async def counters(self) -> ServerCounters | None:
        """The server's own statistics of the model; None where there are none."""
        try:
            return await self.client.counters(self.info)
        except RemoteError:  # the level's own records tell what is wrong with the server
            return None

    async def invalid(self, number: int) -> str:
        """What is wrong with a whole answer, read in full before each level; empty when it is right."""
        try:
            at = number % len(self.arrays)
            if self.places:
                await self.client.infer_in_place(self.info, self.arrays[at], self.places[at])
            else:
                await self.client.infer(self.info, self.arrays[at], binary=self.binary)
        except RemoteError as exc:
            return str(exc)
        return ""


async def find_model(
    config: BenchConfig,
    client: V2Server,
    server: ServerInfo,
    unready: Mapping[str, str],
    goals_ms: Mapping[str, float],
    stack: AsyncExitStack,
) -> TargetModel:
    """The model that `config` names, its requests made, and one of them answered rightly.

    `unready`: models that did not start, and why; `goals_ms`: of latency by model, "" for any other. `stack` gives back
    shared memory.
    Raises UsageError, MeasurementFailed and RemoteError.
    """
    if config.model in unready:
        raise MeasurementFailed(f"model '{config.model}' did not start: {unready[config.model]}")
    info = await client.model(config.model or await default_model(client, unready), config.model_version)
    arrays = requests_of(config, info)
    binary = server.binary if config.tensor_format == "auto" else config.tensor_format == "binary"
    answer = await client.infer(info, arrays[0], binary=binary)
    skip = 1 if info.batches else 0
    fixed = all(spec.datatype != "BYTES" and min(spec.dims[skip:], default=0) >= 0 for spec in info.outputs)
    places: tuple[Places, ...] = ()
    if config.shared_memory == "system":
        places = await stack.enter_async_context(in_shared_memory(client, info, arrays, answer.outputs))
        await client.infer_in_place(info, arrays[0], places[0])
        fixed = False  # answers hold no tensors
    requests = tuple(
        client.request(info, single, binary=binary, places=place) for single, place in zip_longest(arrays, places)
    )
    return TargetModel(
        client=client,
        info=info,
        arrays=tuple(arrays),
        binary=binary,
        places=places,
        traffic=Traffic(
            model=LoadedModel(info.name, info.version, config.batch, goals_ms.get(info.name, goals_ms.get("", 0.0))),
            requests=requests,
            payload_bytes=answer.payload_bytes if fixed and answer.payload_bytes >= 0 else None,
        ),
        inputs=tuple(
            f"{spec.name} {spec.datatype} {list(array.shape)}"
            for spec, array in zip(info.inputs, arrays[0], strict=True)
        ),
    )


async def default_model(client: V2Server, unready: Mapping[str, str]) -> str:
    """The first model that is ready; raises UsageError where the server does not list them, MeasurementFailed."""
    names = await client.ready_models()
    if names is None:
        raise UsageError(f"{client.url} does not list its models: name one with --model")
    if not names:
        reasons = "".join(f"; {name}: {reason}" for name, reason in unready.items())
        raise MeasurementFailed(f"{client.url} has no model that is ready{reasons}")
    return names[0]


def requests_of(config: BenchConfig, model: ModelInfo) -> list[tuple[Array, ...]]:
    """The inputs of each request, as the options ask for them; raises UsageError."""
    shapes = parse_shapes(config.shape)
    if config.input not in ("random", "zero"):
        read = from_folder if Path(config.input).is_dir() else from_file
        return read(Path(config.input), model, config.batch, shapes)
    seed = config.seed if config.input == "random" else None
    return generated(model, sample_dims(model, config.batch, shapes), config.batch, seed, config.string_length)


def described(client: V2Server, server: ServerInfo, models: Sequence[TargetModel], *, embedded: bool) -> Target:
    """The server and the models, as a result file tells them; platform and config are those of the first."""
    first = models[0]
    inputs = first.inputs
    if len(models) > 1:
        inputs = tuple(f"{model.info.name}: {text}" for model in models for text in model.inputs)
    return Target(
        url=client.url,
        embedded=embedded,
        server_name=server.name,
        server_version=server.version,
        model=", ".join(model.info.name for model in models),
        model_version=first.info.version,
        platform=first.info.platform,
        inputs=inputs,
        binary=first.binary,
        config=first.info.config,
    )
