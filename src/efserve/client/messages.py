"""The JSON messages of the v2 protocol as a client reads them; fields that efserve does not need are ignored."""

from typing import Annotated, TypeVar

import msgspec

from efserve.client.control import HttpAnswer
from efserve.errors import RemoteError

_Message = TypeVar("_Message")


def decode(answer: HttpAnswer, kind: type[_Message]) -> _Message:
    """The message in an answer's body; raises RemoteError when the body is something else."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as exc:
        raise RemoteError(f"the server's answer is not what the v2 protocol says: {exc}", answer.status) from exc


class ServerMessage(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    extensions: list[str] = []


class IndexEntry(msgspec.Struct, frozen=True):
    name: str
    state: str = "READY"


class TensorMessage(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]


class ModelMessage(msgspec.Struct, frozen=True):
    name: str
    inputs: list[TensorMessage]
    outputs: list[TensorMessage]
    platform: str = ""


class ConfigMessage(msgspec.Struct, frozen=True):
    max_batch_size: int = 0


class Duration(msgspec.Struct, frozen=True):
    count: int = 0
    ns: int = 0


class Durations(msgspec.Struct, frozen=True):
    success: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


class ModelStatistics(msgspec.Struct, frozen=True):
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: Durations = Durations()


class Statistics(msgspec.Struct, frozen=True):
    model_stats: list[ModelStatistics]


class OutputParameters(msgspec.Struct, frozen=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class OutputMessage(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[object] | None = None
    parameters: OutputParameters = OutputParameters()


class InferMessage(msgspec.Struct, frozen=True):
    outputs: list[OutputMessage]
