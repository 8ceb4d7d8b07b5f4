"""What `efserve check` says of a config, and that it loads what it checks."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from efserve.devices.cpu import available_cores
from efserve.inspection.check import CheckJob, check
from efserve.inspection.explain import Place, fields, surprises
from efserve.model_config import DynamicBatching, ModelConfig, QueuePolicy
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from live_server import MODELS, SHIPPED

SERVED = ModelConfig(
    "m",
    "onnx",
    8,
    (TensorSpec("x", "FP32", (-1,)),),
    (TensorSpec("y", "FP32", (4,)),),
    dynamic_batching=DynamicBatching(),
)
ALONE = Place((Partition(threads=2),), cores=2)


@pytest.mark.parametrize(
    ("config", "place", "says"),
    [
        (replace(SERVED, max_batch_size=0, dynamic_batching=None), ALONE, "the batch dimension is fixed"),
        (replace(SERVED, dynamic_batching=None), ALONE, "no dynamic_batching"),
        (replace(SERVED, max_batch_size=1), ALONE, "no two requests share a run"),
        (replace(SERVED, optimization="graph { level: 1 }"), ALONE, "optimization has no effect"),
        (SERVED, Place((Partition(threads=2),) * 2, 2), "2 instances with 4 threads in all are more than 2 cores"),
        (
            replace(SERVED, dynamic_batching=DynamicBatching(max_queue_delay_us=500)),
            ALONE,
            "a queue delay of 500 us: a client that sends one request at a time",
        ),
        (replace(SERVED, dynamic_batching=DynamicBatching((2, 4))), ALONE, "stays below max_batch_size 8"),
        (
            replace(SERVED, dynamic_batching=DynamicBatching((), 500, QueuePolicy(default_timeout_us=400))),
            ALONE,
            "a lone request is always late",
        ),
    ],
)
def test_surprises(config: ModelConfig, place: Place, says: str) -> None:
    assert any(says in text for text in surprises(config, place))


def test_nothing_surprises_in_a_plain_model() -> None:
    assert surprises(SERVED, ALONE) == []


def test_fields_tell_what_was_completed() -> None:
    found = {field.name: field for field in fields(ModelConfig("m"), SERVED, ALONE, has_file=False)}
    assert found["max_batch_size"].source == found["input"].source == "model file"
    assert found["input"].meaning == "clients send FP32 of shape [-1, -1], -1: any size"
    assert found["dynamic_batching"].value == "on"
    written = {field.name: field for field in fields(SERVED, SERVED, ALONE, has_file=True)}
    assert written["max_batch_size"].source == written["input"].source == "config.pbtxt"


def test_check_loads_each_model(tmp_path: Path) -> None:
    job = CheckJob(model_repository=(MODELS,), model=("echo", "raises_in_load"), load_timeout_s=30)
    echo, broken = asyncio.run(check(job))
    assert not echo.error
    assert echo.rss_bytes > 0
    assert broken.model == "raises_in_load"
    assert broken.error


def test_check_tells_what_is_wrong_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: -1")
    (result,) = asyncio.run(check(CheckJob(model_repository=(tmp_path,))))
    assert "'max_batch_size' must be non-negative value for m, not -1" in result.error


def test_the_shipped_models_are_fine() -> None:
    (digits,) = asyncio.run(check(CheckJob(model_repository=(SHIPPED,), model=("digits",))))
    assert not digits.error


def test_check_explains_shares(tmp_path: Path) -> None:
    cores = len(available_cores())
    head = (MODELS / "echo" / "config.pbtxt").read_text()
    shares = 'parameters { key: "%s" value { string_value: "%s" } }'
    for name, config in (("shared", shares % ("share_pct", 100) + shares % ("memory_limit_mb", 300)), ("gpu", "")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.py").write_bytes((MODELS / "echo" / "1" / "model.py").read_bytes())
        group = "instance_group { kind: KIND_GPU gpus: 99 }" if name == "gpu" else ""
        (tmp_path / name / "config.pbtxt").write_text(head + config + group)
    gpu, shared = asyncio.run(check(CheckJob(model_repository=(tmp_path,))))
    assert "GPU" in gpu.error
    assert not shared.error
    found = {field.name: field for field in shared.fields if field.name != "parameters"}
    assert found["share_pct"].meaning == f"of the CPU for each of them: its own {cores} of {cores} cores"
    assert found["memory_limit_mb"].value == "300"
    assert found["threads"].value == str(cores)
