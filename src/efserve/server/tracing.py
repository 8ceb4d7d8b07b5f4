"""Traces of single requests: the settings of the server and of each model, and the lines that they produce.

A line of JSON per traced request, with Triton's names for its timestamps (nanoseconds of the monotonic clock) and for
its tensors, whose values, shapes and datatypes are strings as Triton writes them.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from efserve.errors import InvalidRequest, Unsupported, UsageError
from efserve.inference import BatchTiming, InferRequest, Outcome, Wire
from efserve.model_config import ModelConfig
from efserve.server.trace_files import TraceFiles
from efserve.tensors import ABSENT_DIM, Shape, TensorSpec, from_bfloat16, to_array

log = logging.getLogger(__name__)

Answered = tuple[InferRequest, Outcome, tuple[int, int]]  # the last: when the answer began to be sent, and was
# What Triton calls the times at which a frontend began to receive a request, had it, began to send the answer, had.
_FRONTENDS = {
    "HTTP": (("HTTP_RECV_START", "HTTP_RECV_END"), ("HTTP_SEND_START", "HTTP_SEND_END")),
    "GRPC": (("GRPC_WAITREAD_START", "GRPC_WAITREAD_END"), ("GRPC_SEND_START", "GRPC_SEND_END")),
}
_LIMITS = {"trace_rate": (0, 2**32 - 1), "trace_count": (-1, 2**31 - 1), "log_frequency": (0, 2**32 - 1)}


@dataclass(frozen=True, slots=True)
class TraceSetting:
    """What is traced: one request of `trace_rate`, until `trace_count` are done (-1: without end)."""

    trace_level: tuple[str, ...] = ("OFF",)
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0  # lines per file, which is then numbered; 0: all in one

    @property
    def is_on(self) -> bool:
        """Whether any request may be traced."""
        return self.trace_level != ("OFF",) and self.trace_rate > 0 and self.trace_count != 0


_OPTIONS = {"rate": "trace_rate", "count": "trace_count", "triton,log-frequency": "log_frequency"}
_NAMES = tuple(field.name for field in fields(TraceSetting))


def read_trace_config(given: Sequence[str], path: Path | None) -> tuple[Path | None, TraceSetting]:
    """Where traces go, and the settings at the start, by Triton's option `--trace-config` KEY=VALUE; UsageError."""
    settings: dict[str, Any] = {}
    levels: list[str] = []
    for item in given:
        key, _, value = item.partition("=")
        if key == "level":
            levels.append(value)
        elif key == "triton,file":
            path = Path(value)
        elif key in _OPTIONS:
            settings[_OPTIONS[key]] = value
        elif item != "mode=triton":
            known = ", ".join(["level", *_OPTIONS, "triton,file"])
            raise UsageError(f"--trace-config {item} is not known; expected mode=triton or one of {known} and a value")
    try:
        parsed: dict[str, Any] = {name: _parse(name, value) for name, value in settings.items()}
        if levels:
            parsed["trace_level"] = _levels(levels)
    except InvalidRequest as exc:
        raise UsageError(f"--trace-config: {exc}") from exc
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"traces cannot be written to {path}; name a file in a folder that is there and writable")
    return path, TraceSetting(**parsed)


class Tracer:
    """Holds the settings and writes the traces; into `path`, or into the log where there is none."""

    def __init__(self, path: Path | None = None, start: TraceSetting | None = None) -> None:
        """`start`: the server's settings until a client changes them, and again when one takes its changes back."""
        self._path = path
        self._files = TraceFiles()
        self._start = self._server = start or TraceSetting()
        self._models: dict[str, dict[str, Any]] = {}  # what models have of their own
        self._left: dict[str, int] = {}  # of trace_count, by model; "": the server's own
        # Requests since settings changed, by the model that has settings of its own; "": of all others.
        self._seen: dict[str, int] = {}
        self._lines = 0
        self._last_id = 0
        self.is_on = self._server.is_on  # for any model

    def close(self) -> None:
        """The last trace has been made: returns when all are in their files, or the disk has had its time."""
        self._files.close()

    def get(self, model: str = "") -> dict[str, object]:
        """The settings of a model, or the server's, as the protocol prints them; `trace_count` is what is left."""
        setting = self._setting(model)
        setting = replace(setting, trace_count=self._left.get(self._owner(model), setting.trace_count))
        numbers = {name: str(getattr(setting, name)) for name in _LIMITS}
        file = str(self._path or "")
        return {"trace_level": list(setting.trace_level), **numbers, "trace_file": file, "trace_mode": "triton"}

    def update(self, changes: dict[str, Any], model: str = "") -> None:
        """Changes settings, all or none; None for one takes it back. InvalidRequest or Unsupported."""
        if "trace_file" in changes:
            raise Unsupported("trace file location can not be updated through network protocol")
        values: dict[str, Any] = {name: _parse(name, value) for name, value in changes.items() if name in _NAMES}
        taken_back = {name for name, value in values.items() if value is None}
        values = {name: value for name, value in values.items() if value is not None}
        if model:
            own = {name: value for name, value in self._models.get(model, {}).items() if name not in taken_back}
            self._models[model] = {**own, **values}
        else:
            defaults: dict[str, Any] = {name: getattr(self._start, name) for name in taken_back}
            self._server = replace(self._server, **defaults, **values)
        if model:
            self._seen.pop(model, None)
        else:
            self._seen.clear()
        if "trace_count" in changes:
            self._left.pop(model, None)
        self.is_on = any(self._setting(name).is_on for name in ("", *self._models))

    def answer(self, batch: Sequence[InferRequest], outcomes: Sequence[Outcome]) -> list[tuple[int, int]]:
        """Give requests their outcomes; while any is traced, when each answer began to be sent and was."""
        if not self.is_on:
            for request, outcome in zip(batch, outcomes, strict=True):
                request.done(outcome)
            return []
        sent = []
        for request, outcome in zip(batch, outcomes, strict=True):
            start_ns = time.monotonic_ns()
            request.done(outcome)
            sent.append((start_ns, time.monotonic_ns()))
        return sent

    def batch_done(
        self, config: ModelConfig, version: str, batch: Iterable[Answered], timing: BatchTiming, end_ns: int
    ) -> None:
        """Traces those of the requests, each with its outcome, whose turn it is."""
        model = config.name
        setting = self._setting(model)
        if not setting.is_on:
            return
        owner, counted = self._owner(model), model if self._models.get(model) else ""
        for request, outcome, sent_ns in batch:
            seen = self._seen[counted] = self._seen.get(counted, 0) + 1
            left = self._left.setdefault(owner, setting.trace_count)
            if left == 0 or seen % setting.trace_rate:
                continue
            self._left[owner] = left - 1 if left > 0 else left
            self._last_id += 1
            line: dict[str, object] = {"id": self._last_id, "model_name": model, "model_version": int(version)}
            if "TIMESTAMPS" in setting.trace_level:
                line["timestamps"] = _timestamps(request, timing, end_ns, sent_ns)
            if "TENSORS" in setting.trace_level:
                line["tensors"] = _tensors(config, request, outcome)
            self._write(setting, msgspec.json.encode(line))

    def _owner(self, model: str) -> str:
        """Whose `trace_count` holds for a model: its own name, or "" for the server's."""
        return model if "trace_count" in self._models.get(model, {}) else ""

    def _setting(self, model: str) -> TraceSetting:
        return replace(self._server, **self._models.get(model, {}))

    def _write(self, setting: TraceSetting, line: bytes) -> None:
        if self._path is None:
            log.info("trace=%s", line.decode())
            return
        path = self._path
        if setting.log_frequency:
            path = path.with_name(f"{path.name}.{self._lines // setting.log_frequency}")
        self._lines += 1
        self._files.write(path, line + b"\n")


def _timestamps(
    request: InferRequest, timing: BatchTiming, end_ns: int, sent_ns: tuple[int, int]
) -> list[dict[str, object]]:
    received, sent = _FRONTENDS.get(request.protocol, ((), ()))
    stamps = {
        **dict(zip(received, (request.begun_ns or request.arrival_ns, request.arrival_ns), strict=False)),
        "REQUEST_START": request.arrival_ns,
        "QUEUE_START": request.arrival_ns,
        "COMPUTE_START": timing.start_ns,
        "COMPUTE_INPUT_END": timing.input_ns,
        "COMPUTE_OUTPUT_START": timing.infer_ns,
        "COMPUTE_END": timing.output_ns,
        "REQUEST_END": end_ns,
        **dict(zip(sent, sent_ns, strict=False)),
    }
    return [{"name": name, "ns": ns} for name, ns in stamps.items()]


def _tensors(config: ModelConfig, request: InferRequest, outcome: Outcome) -> list[dict[str, str]]:
    """The inputs, and the outputs of a request that has some."""
    inputs = zip(config.inputs, request.shapes, request.tensors, strict=True)
    told = [_tensor("TENSOR_QUEUE_INPUT", *one) for one in inputs if one[1][-1:] != (ABSENT_DIM,)]
    if isinstance(outcome, tuple):
        outputs = zip(config.outputs, outcome, strict=True)
        told += [_tensor("TENSOR_BACKEND_OUTPUT", spec, output.shape, output.data) for spec, output in outputs]
    return told


def _tensor(activity: str, spec: TensorSpec, shape: Shape, data: Wire) -> dict[str, str]:
    array = to_array(bytes(data), spec.datatype, shape)
    if spec.datatype == "BF16":
        array = from_bfloat16(array)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in array.ravel()]
    return {
        "activity": activity,
        "name": spec.name,
        "data": ",".join(texts),
        "shape": ",".join(map(str, shape)),
        "dtype": spec.datatype,
    }


def _parse(name: str, value: object) -> object:
    if value is None:
        return None
    if name == "trace_level":
        return _levels(value)
    low, high = _LIMITS[name]
    try:
        number = int(value) if isinstance(value, (str, int)) else None
    except ValueError:
        number = None
    if number is None:
        raise InvalidRequest(f"Unable to parse '{name}', got: {value}")
    if not low <= number <= high:
        raise InvalidRequest(f"Unable to parse '{name}', value is out of range [ {low}, {high} ], got: {value}")
    return number


def _levels(value: object) -> tuple[str, ...]:
    levels = tuple(value) if isinstance(value, list) else (value,)
    if levels == ("OFF",):
        return ("OFF",)
    if "OFF" in levels:
        raise InvalidRequest("Expect only one trace level 'OFF' is specified")
    if not levels or not set(levels) <= {"TIMESTAMPS", "TENSORS"}:
        raise InvalidRequest(f"trace_level is {list(levels)}, expected OFF, TIMESTAMPS or TENSORS")
    return tuple(dict.fromkeys(map(str, levels)))
