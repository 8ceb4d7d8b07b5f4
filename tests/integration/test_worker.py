"""Real worker processes: answers, failures that they survive, and models that do not load."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import uvloop

import onnx_models
from efserve.devices.cpu import available_cores
from efserve.errors import InferenceFailed
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from efserve.worker.handle import WorkerState
from worker_desk import (
    DEADLINE_S,
    Array,
    Desk,
    affinities,
    echo_spec,
    environment,
    fails_to_start,
    onnx_spec,
    request,
    rows,
    run,
    values,
    zoo_spec,
)


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run])
def test_requests_share_a_batch_and_get_their_own_rows(tmp_path: Path, runner: Any) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)), request(rows(3, start=100)), request(rows(2, start=200)))
        desk.send(1, request(rows(2, start=300)))
        outcomes, timing = await desk.answers[0]
        for outcome, expected in zip(outcomes, (rows(1), rows(3, start=100), rows(2, start=200)), strict=True):
            assert isinstance(outcome, tuple)
            np.testing.assert_array_equal(values(outcome), expected)
        assert timing is not None
        assert timing.start_ns <= timing.input_ns <= timing.infer_ns <= timing.output_ns <= monotonic() * 1e9
        (second,), _ = await desk.answers[1]
        assert isinstance(second, tuple)
        np.testing.assert_array_equal(values(second), rows(2, start=300))

    run(onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4))), body, runner)


def test_the_config_is_completed_by_the_file(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        facts = desk.worker.facts
        assert facts is not None
        assert facts.config.max_batch_size == 8
        assert facts.config.inputs == (TensorSpec("a", "FP32", (4,)), TensorSpec("b", "FP32", (4,)))
        assert [spec.name for spec in facts.config.outputs] == ["sum", "difference"]
        assert facts.pid == desk.worker.pid
        assert facts.engine_version.startswith("onnxruntime ")
        assert 0 < facts.load_s < facts.start_s < DEADLINE_S
        outputs = await desk.infer(rows(2), rows(2, start=1))
        np.testing.assert_array_equal(values(outputs, 0), rows(2) + rows(2, start=1))
        np.testing.assert_array_equal(values(outputs, 1), rows(2) - rows(2, start=1))

    run(onnx_spec(onnx_models.save(tmp_path, "add_sub", onnx_models.add_sub())), body)


def test_only_the_outputs_of_the_config_come_back_in_its_order(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "add_sub", onnx_models.add_sub())
    inputs = (TensorSpec("b", "FP32", (4,)), TensorSpec("a", "FP32", (4,)))
    config = ModelConfig("add_sub", "onnx", 8, inputs, (TensorSpec("difference", "FP32", (4,)),))

    async def body(desk: Desk) -> None:
        outputs = await desk.infer(rows(1), rows(1, start=7))
        assert len(outputs) == 1
        np.testing.assert_array_equal(values(outputs), np.full((1, 4), 7, np.float32))

    run(onnx_spec(folder, config=config), body)


def test_the_maximum_batch_can_be_forced(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert desk.worker.facts is not None
        assert desk.worker.facts.config.max_batch_size == 3

    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(4))
    run(onnx_spec(folder, force_max_batch=3), body)


def test_free_dimensions_of_any_size(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        for length in (1, 3, 1000, 2, 700_000, 5):
            batch = [rows(2, length), rows(1, length, start=9)]
            outcomes = await desk.ask(*map(request, batch))
            for outcome, array in zip(outcomes, batch, strict=True):
                assert isinstance(outcome, tuple)
                np.testing.assert_array_equal(values(outcome, 0), 2 * array)
                np.testing.assert_array_equal(values(outcome, 1), array[:, :1])

    run(onnx_spec(onnx_models.save(tmp_path, "dynamic", onnx_models.dynamic())), body)


def test_a_model_without_a_batch_dimension(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert desk.worker.facts is not None
        assert not desk.worker.facts.config.batches
        array = rows(2, 3)
        np.testing.assert_array_equal(values(await desk.infer(array)), array.T)

    run(onnx_spec(onnx_models.save(tmp_path, "transpose", onnx_models.without_batch())), body)


def test_strings_through_onnx(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        first = np.array([[b"", "löwe".encode()], [b"x" * 5000, b"c"]], object)
        second = np.array([[b"1", b"2"]], object)
        one, two = await desk.ask(request(first), request(second))
        assert isinstance(one, tuple)
        assert isinstance(two, tuple)
        assert values(one, 0, "BYTES").tolist() == [[b"", "löwe".encode()], [b"x" * 5000, b"c"]]
        assert values(two, 0, "BYTES").tolist() == second.tolist()
        (bad,) = await desk.ask(request(np.array([[b"\xff"]], object)))
        assert isinstance(bad, InferenceFailed)
        assert "UTF-8" in str(bad)

    run(onnx_spec(onnx_models.save(tmp_path, "strings", onnx_models.string_identity())), body)


def test_strings_and_numbers_of_any_length() -> None:
    async def body(desk: Desk) -> None:
        def arrays(count: int, length: int) -> tuple[Array, Array, Array]:
            text = np.array([[b"%d" % i * (i % 7) for i in range(length)]] * count, object).reshape(count, length)
            return text, rows(count, length), np.arange(count * length, dtype=np.int64).reshape(count, length)

        for length in (0, 1, 5, 3000):
            batch = [arrays(1, length), arrays(3, length)]
            outcomes = await desk.ask(*[request(*each) for each in batch])
            for outcome, (text, number, count) in zip(outcomes, batch, strict=True):
                assert isinstance(outcome, tuple)
                assert values(outcome, 0, "BYTES").tolist() == text.tolist()
                np.testing.assert_array_equal(values(outcome, 1), number)
                np.testing.assert_array_equal(values(outcome, 2, "INT64"), count)

    run(echo_spec(), body)


def test_bfloat16(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        array = np.arange(8, dtype=np.uint16).reshape(2, 4)
        np.testing.assert_array_equal(values(await desk.infer(array), 0, "BF16"), array)

    data = onnx_models.identity(4, onnx_models.BF16)
    run(onnx_spec(onnx_models.save(tmp_path, "bf16", data)), body)


def test_a_request_of_64_mb(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        array = rows(1, 16 << 20)
        outputs = await desk.infer(array)
        assert outputs[0].data == array.tobytes()

    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(16 << 20))
    run(onnx_spec(folder, warmup=False), body)


def test_an_output_much_larger_than_its_input(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        outputs = await desk.infer(np.array([[1.0], [2.0]], np.float32))
        np.testing.assert_array_equal(values(outputs)[:, -1], [1, 2])
        assert len(outputs[0].data) == 32_000_000

    folder = onnx_models.save(tmp_path, "huge", onnx_models.huge_output())
    run(onnx_spec(folder, warmup=False), body)


def test_weights_beside_the_model_file(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        assert (await desk.infer(np.zeros((2, 1, 28, 28), np.float32)))[0].shape == (2, 10)
        assert desk.worker.rss_bytes() < 150e6

    folder = onnx_models.save_with_external_data(tmp_path, "cnn")
    assert (folder / "model.onnx").stat().st_size < 10_000
    run(onnx_spec(folder), body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises_in_infer", "ValueError: cannot digest this"),
        ("wrong_shape", "output 'output' has shape [2, 3], expected [2, 4] for a batch of 2"),
        ("wrong_rows", "output 'output' has shape [3, 4], expected [2, 4] for a batch of 2"),
        ("missing_output", "output 'output' is missing"),
    ],
)
def test_a_failed_batch_costs_the_worker_nothing(name: str, says: str) -> None:
    async def body(desk: Desk) -> None:
        pid = desk.worker.pid
        for _ in range(2):
            outcomes = await desk.ask(request(rows(1)), request(rows(1)))
            assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 2
            assert says in str(outcomes[0])
        assert desk.worker.pid == pid
        assert desk.worker.state is WorkerState.READY

    run(zoo_spec(name), body)


def test_an_onnx_model_that_fails_says_why(tmp_path: Path) -> None:
    config = ModelConfig("m", "onnx", 8, (TensorSpec("input", "FP32", (-1,)),), (TensorSpec("first", "FP32", (2,)),))
    data = onnx_models.dynamic(first_columns="length")
    folder = onnx_models.save(tmp_path, "m", data)

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(1, 3)))
        assert str(outcome) == "output 'first' has shape [1, 1], expected [1, 2] for a batch of 1"

    run(onnx_spec(folder, config=config), body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises_in_load", ("RuntimeError: the weights are rotten", "Traceback")),
        ("exits_in_load", ("exited with code 3 while it was starting", "no licence found")),
    ],
)
def test_a_model_that_does_not_load(name: str, says: Sequence[str]) -> None:
    text = fails_to_start(zoo_spec(name))
    assert all(part in text for part in says)


def test_a_model_that_loads_for_ever() -> None:
    assert "not ready within 0.5 s" in fails_to_start(zoo_spec("never_ready"), 0.5)


def test_files_that_are_wrong_or_missing(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert "there is no file model.onnx" in fails_to_start(onnx_spec(tmp_path / "1"))
    (tmp_path / "1" / "model.onnx").write_bytes(b"garbage")
    reason = fails_to_start(onnx_spec(tmp_path / "1"))
    assert "/1 cannot be loaded: InvalidProtobuf:" in reason
    assert "\n" not in reason
    assert "there is no engine 'caffe'" in fails_to_start(onnx_spec(tmp_path / "1", engine="caffe"))
    (tmp_path / "1" / "model.py").write_text("class Modell: ...")
    spec = replace(zoo_spec("echo"), folder=tmp_path / "1")
    assert "has no class Model" in fails_to_start(spec)


def test_a_warm_up_that_fails_is_a_failure_to_load(tmp_path: Path) -> None:
    text = fails_to_start(onnx_spec(onnx_models.save(tmp_path, "m", onnx_models.doubles_rows())))
    assert "output 'output'" in text
    assert "has shape {1,4} but the computed output shape for this run is {2,4}" in text


def test_cores_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "identity", onnx_models.identity(4))
    for cores in ((5000,), (available_cores()[0], 900)):
        text = fails_to_start(onnx_spec(folder, partition=Partition("cpu", 1, cores)))
        assert "cannot run on cores" in text
        assert str(cores[-1]) in text


@pytest.mark.parametrize("threads", [1, 2])
def test_a_partition_is_real(tmp_path: Path, threads: int) -> None:
    core = available_cores()[-1]

    async def body(desk: Desk) -> None:
        assert affinities(desk.worker.pid) == {(core,)}
        assert environment(desk.worker.pid)["OMP_NUM_THREADS"] == str(threads)

    folder = onnx_models.save(tmp_path, "cnn", onnx_models.cnn())
    run(onnx_spec(folder, partition=Partition("cpu", threads, (core,))), body)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize(("share_pct", "is_own"), [(100.0, True), (0.0, False)])
def test_threads_keep_to_a_core_each_where_the_cores_are_their_own(
    tmp_path: Path, share_pct: float, is_own: bool
) -> None:
    cores = available_cores()[:2]

    async def body(desk: Desk) -> None:
        found = affinities(desk.worker.pid)
        assert ({cores[:1], cores[1:]} <= found) is is_own
        assert tuple(os.sched_getaffinity(desk.worker.pid)) == (cores[:1] if is_own else cores)

    folder = onnx_models.save(tmp_path, "cnn", onnx_models.cnn())
    run(onnx_spec(folder, partition=Partition("cpu", 2, cores, share_pct)), body)
