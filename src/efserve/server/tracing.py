"""Traces of single requests: the settings of the server and of each model, and the lines that they produce.

A line of JSON per traced request, with Triton's names for its timestamps (nanoseconds of the monotonic clock).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from efserve.errors import InvalidRequest, Unsupported
from efserve.inference import BatchTiming, InferRequest

log = logging.getLogger(__name__)

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


_DEFAULT = TraceSetting()
_NAMES = tuple(field.name for field in fields(TraceSetting))


class Tracer:
    """Holds the settings and writes the traces; into `path`, or into the log where there is none."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._server = _DEFAULT
        self._models: dict[str, dict[str, Any]] = {}  # what models have of their own
        self._left: dict[str, int] = {}  # of trace_count, by model; "": the server's own
        self._seen: dict[str, int] = {}  # requests of a model since its settings changed
        self._lines = 0
        self._last_id = 0
        self.is_on = False  # for any model

    def get(self, model: str = "") -> dict[str, object]:
        """The settings of a model, or the server's, as the protocol prints them."""
        setting = self._setting(model)
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
            defaults: dict[str, Any] = {name: getattr(_DEFAULT, name) for name in taken_back}
            self._server = replace(self._server, **defaults, **values)
        for owner in self._models if not model else (model,):
            self._seen.pop(owner, None)
        if "trace_count" in changes:
            self._left.pop(model, None)
        self.is_on = any(self._setting(name).is_on for name in ("", *self._models))

    def batch_done(
        self, model: str, version: str, requests: Sequence[InferRequest], timing: BatchTiming, end_ns: int
    ) -> None:
        """Traces those of the requests whose turn it is."""
        setting = self._setting(model)
        if not setting.is_on:
            return
        owner = model if "trace_count" in self._models.get(model, {}) else ""
        for request in requests:
            seen = self._seen[model] = self._seen.get(model, 0) + 1
            left = self._left.setdefault(owner, setting.trace_count)
            if left == 0 or seen % setting.trace_rate:
                continue
            self._left[owner] = left - 1 if left > 0 else left
            self._write(setting, self._line(model, version, request, timing, end_ns))

    def _setting(self, model: str) -> TraceSetting:
        return replace(self._server, **self._models.get(model, {}))

    def _line(self, model: str, version: str, request: InferRequest, timing: BatchTiming, end_ns: int) -> bytes:
        self._last_id += 1
        stamps = {
            "REQUEST_START": request.arrival_ns,
            "QUEUE_START": request.arrival_ns,
            "COMPUTE_START": timing.start_ns,
            "COMPUTE_INPUT_END": timing.input_ns,
            "COMPUTE_OUTPUT_START": timing.infer_ns,
            "COMPUTE_END": timing.output_ns,
            "REQUEST_END": end_ns,
        }
        timestamps = [{"name": name, "ns": ns} for name, ns in stamps.items()]
        head = {"id": self._last_id, "model_name": model, "model_version": version}
        return msgspec.json.encode({**head, "timestamps": timestamps})

    def _write(self, setting: TraceSetting, line: bytes) -> None:
        if self._path is None:
            log.info("trace=%s", line.decode())
            return
        path = self._path
        if setting.log_frequency:
            path = path.with_name(f"{path.name}.{self._lines // setting.log_frequency}")
        self._lines += 1
        try:
            with path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as exc:
            log.error("a trace cannot be written to %s: %s", path, exc.strerror)


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
    if levels != ("TIMESTAMPS",):
        raise InvalidRequest(f"trace_level is {list(levels)}, expected OFF or TIMESTAMPS")
    return ("TIMESTAMPS",)
