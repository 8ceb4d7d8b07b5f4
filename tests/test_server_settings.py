"""Trace and log settings: validated, told, applied."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efserve.errors import EfserveError, InferenceFailed, InvalidRequest, Unavailable, Unsupported, UsageError
from efserve.inference import BatchTiming, InferRequest, Outcome, OutputTensor
from efserve.model_config import ModelConfig
from efserve.server.logs import LogSettings
from efserve.server.tracing import Answered, Tracer, read_trace_config
from efserve.tensors import TensorSpec, encode_bytes

TIMING = BatchTiming(20, 30, 40, 50)


SPECS = (TensorSpec("x", "FP32", (2,)), TensorSpec("label", "BYTES", (1,)))


def model(name: str) -> ModelConfig:
    return ModelConfig(name, inputs=SPECS, outputs=SPECS[:1])


def requests(number: int, protocol: str = "") -> list[Answered]:
    def nobody(outcome: Outcome) -> None:
        raise AssertionError(outcome)

    tensors = (np.array([1.5, 2], np.float32).tobytes(), encode_bytes([b"cat"]))
    request = InferRequest(tensors, ((2,), (1,)), 1, "k", nobody, arrival_ns=10, protocol=protocol, begun_ns=5)
    return [(request, (OutputTensor((2,), tensors[0]),), (70, 80))] * number


def lines(tracer: Tracer, path: Path) -> list[dict[str, Any]]:
    tracer.close()
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_traces_may_be_on_from_the_start() -> None:
    given = ("mode=triton", "level=TIMESTAMPS", "level=TENSORS", "rate=5", "count=9", "triton,log-frequency=2")
    path, start = read_trace_config((*given, "triton,file=x.json"), Path("other.json"))
    tracer = Tracer(path, start)
    settings = {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": "5",
        "trace_count": "9",
        "log_frequency": "2",
        "trace_file": "x.json",
        "trace_mode": "triton",
    }
    assert tracer.is_on
    assert tracer.get() == settings
    tracer.update({"trace_rate": "7", "trace_level": ["OFF"]})
    assert not tracer.is_on
    tracer.update({"trace_rate": None, "trace_level": None})  # back to the start
    assert tracer.get() == settings


@pytest.mark.parametrize("given", ["mode=opentelemetry", "rate=often", "level=ALL", "rate", "opentelemetry,url=x"])
def test_a_wrong_trace_config_is_told(given: str) -> None:
    with pytest.raises(UsageError, match="--trace-config"):
        read_trace_config((given,), None)


def test_a_place_where_no_traces_can_go_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"traces cannot be written to {tmp_path}/none/x.json; "):
        read_trace_config((), tmp_path / "none" / "x.json")
    with pytest.raises(UsageError, match=r"traces cannot be written to /proc/1/x\.json; "):  # not even by root
        read_trace_config(("triton,file=/proc/1/x.json",), None)


def test_trace_settings_as_triton_prints_them() -> None:
    assert Tracer(Path("t.json")).get() == {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "t.json",
        "trace_mode": "triton",
    }


def test_a_model_follows_the_server_but_for_what_it_has_of_its_own() -> None:
    tracer = Tracer()
    tracer.update({"trace_rate": "7"}, "m")
    tracer.update({"trace_rate": 3, "trace_count": "5"})
    assert (tracer.get("m")["trace_rate"], tracer.get("m")["trace_count"]) == ("7", "5")
    assert tracer.get("other")["trace_rate"] == "3"
    tracer.update({"trace_rate": None}, "m")
    assert tracer.get("m")["trace_rate"] == "3"
    tracer.update({"trace_rate": None})
    assert tracer.get("m")["trace_rate"] == "1000"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"trace_file": "x"}, Unsupported, "trace file location can not be updated through network protocol"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, InvalidRequest, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ["ALL"]}, InvalidRequest, "expected OFF, TIMESTAMPS or TENSORS"),
        ({"trace_level": []}, InvalidRequest, "expected OFF, TIMESTAMPS or TENSORS"),
        ({"trace_rate": "often"}, InvalidRequest, "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": []}, InvalidRequest, "Unable to parse 'trace_rate'"),
        ({"trace_count": "-2"}, InvalidRequest, "value is out of range"),
        ({"log_frequency": 2**40}, InvalidRequest, "value is out of range"),
    ],
)
def test_wrong_trace_settings_change_nothing(changes: dict[str, Any], error: type[EfserveError], says: str) -> None:
    tracer = Tracer()
    with pytest.raises(error, match=says):
        tracer.update({"trace_level": ["TIMESTAMPS"], **changes})
    assert tracer.get() == Tracer().get()


def test_every_nth_request_is_traced_until_enough_are(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    tracer = Tracer(path)
    tracer.batch_done(model("m"), "1", requests(5), TIMING, 60)
    assert not tracer.is_on
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "3", "trace_count": "2"})
    assert tracer.is_on
    tracer.batch_done(model("m"), "1", requests(2), TIMING, 60)
    assert lines(tracer, path) == []
    tracer.batch_done(model("m"), "1", requests(20), TIMING, 60)
    assert [line["id"] for line in lines(tracer, path)] == [1, 2]
    stamps = {stamp["name"]: stamp["ns"] for stamp in lines(tracer, path)[0]["timestamps"]}
    assert stamps == {
        "REQUEST_START": 10,
        "QUEUE_START": 10,
        "COMPUTE_START": 20,
        "COMPUTE_INPUT_END": 30,
        "COMPUTE_OUTPUT_START": 40,
        "COMPUTE_END": 50,
        "REQUEST_END": 60,
    }
    tracer.update({"trace_count": "1"})
    tracer.batch_done(model("m"), "1", requests(20), TIMING, 60)
    assert len(lines(tracer, path)) == 3
    tracer.update({"trace_level": ["OFF"]}, "m")
    tracer.update({"trace_count": None})
    tracer.batch_done(model("m"), "1", requests(20), TIMING, 60)
    assert len(lines(tracer, path)) == 3


def test_a_trace_tells_when_the_request_was_received_and_the_answer_sent(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "trace")
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    tracer.batch_done(model("m"), "3", [*requests(1, "HTTP"), *requests(1, "GRPC")], TIMING, 60)
    http, grpc = (
        {stamp["name"]: stamp["ns"] for stamp in line["timestamps"]} for line in lines(tracer, tmp_path / "trace")
    )
    assert [http[f"HTTP_{name}"] for name in ("RECV_START", "RECV_END", "SEND_START", "SEND_END")] == [5, 10, 70, 80]
    assert [grpc[f"GRPC_{name}"] for name in ("WAITREAD_START", "WAITREAD_END")] == [5, 10]
    assert [grpc[f"GRPC_{name}"] for name in ("SEND_START", "SEND_END")] == [70, 80]
    assert lines(tracer, tmp_path / "trace")[0]["model_version"] == 3


def test_models_without_settings_of_their_own_are_counted_together(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "trace")
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "3"})
    tracer.update({"log_frequency": "0"}, "own")
    for name in ("a", "b", "own", "own", "a", "own", "b"):
        tracer.batch_done(model(name), "1", requests(1), TIMING, 60)
    assert [line["model_name"] for line in lines(tracer, tmp_path / "trace")] == ["a", "own"]
    tracer.update({"trace_rate": "2"})  # counts anew
    for name in ("a", "own", "b", "own"):
        tracer.batch_done(model(name), "1", requests(1), TIMING, 60)
    assert [line["model_name"] for line in lines(tracer, tmp_path / "trace")[2:]] == ["b", "own"]


def test_the_trace_count_told_is_what_is_left_of_it(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "trace")
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "5"})
    tracer.update({"trace_count": "3"}, "own")
    tracer.batch_done(model("m"), "1", requests(2), TIMING, 60)
    assert [tracer.get(name)["trace_count"] for name in ("", "m", "own")] == ["3", "3", "3"]
    tracer.batch_done(model("own"), "1", requests(9), TIMING, 60)
    assert [tracer.get(name)["trace_count"] for name in ("", "m", "own")] == ["3", "3", "0"]


def test_tensors_are_written_as_triton_does(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    tracer = Tracer(path)
    tracer.update({"trace_level": ["TENSORS"], "trace_rate": "1"})
    ((request, _, sent_ns),) = requests(1)
    tracer.batch_done(model("m"), "1", [*requests(1), (request, InferenceFailed("no"), sent_ns)], TIMING, 60)
    x = {"name": "x", "data": "1.5,2.0", "shape": "2", "dtype": "FP32"}
    label = {"name": "label", "data": "cat", "shape": "1", "dtype": "BYTES"}
    inputs = [{"activity": "TENSOR_QUEUE_INPUT", **tensor} for tensor in (x, label)]
    both, failed = lines(tracer, path)
    assert both["tensors"] == [*inputs, {"activity": "TENSOR_BACKEND_OUTPUT", **x}]
    assert failed["tensors"] == inputs
    assert "timestamps" not in both
    tracer.update({"trace_level": ["TIMESTAMPS", "TENSORS"]})
    tracer.batch_done(model("m"), "1", requests(1), TIMING, 60)
    assert {"timestamps", "tensors"} < lines(tracer, path)[2].keys()


def test_a_log_frequency_numbers_the_files(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "trace")
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "log_frequency": "2"}, "m")
    tracer.batch_done(model("m"), "1", requests(3), TIMING, 60)
    tracer.batch_done(model("other"), "1", requests(3), TIMING, 60)
    assert [len(lines(tracer, tmp_path / f"trace.{n}")) for n in range(3)] == [2, 1, 0]


def test_a_slow_disk_holds_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    os.mkfifo(path)  # nobody can open it to write before somebody reads
    tracer = Tracer(path)
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    for _ in range(3):
        tracer.batch_done(model("m"), "1", requests(2), TIMING, 60)
    descriptor = os.open(path, os.O_RDWR)  # unlike a reader alone, this meets no end between two writes
    with os.fdopen(descriptor, "rb") as disk:
        assert [json.loads(disk.readline())["id"] for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        tracer.close()


def record(level: int, name: str = "efserve.test") -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "text", (), None)


def test_log_settings_decide_what_is_shown() -> None:
    settings = LogSettings("efserve.test")
    settings.update({"log_info": False, "log_warning": True, "log_error": False, "log_verbose_level": 0})
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    assert [settings.shows(record(level)) for level in levels] == [False, False, True, False]
    settings.update({"log_verbose_level": 2, "log_error": None})
    assert [settings.shows(record(level)) for level in levels] == [True, False, True, False]
    assert settings.shows(record(logging.ERROR, "uvicorn"))
    assert settings.get()["log_verbose_level"] == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"log_file": "x"}, Unsupported),
        ({"log_info": 1}, InvalidRequest),
        ({"log_verbose_level": -1}, InvalidRequest),
        ({"log_verbose_level": True}, InvalidRequest),
        ({"log_format": "pretty"}, Unavailable),
    ],
)
def test_wrong_log_settings_change_nothing(changes: dict[str, Any], error: type[EfserveError]) -> None:
    settings = LogSettings("efserve.test")
    before = settings.get()
    with pytest.raises(error):
        settings.update({"log_warning": False, **changes})
    assert settings.get() == before
