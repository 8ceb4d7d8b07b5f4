"""Real worker processes with TorchScript models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efserve.devices.cpu import available_cores
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from worker_desk import Desk, affinities, fails_to_start, request, rows, run, script_spec, values


@pytest.mark.parametrize("model", ["InTuple", "InList", "InDict"])
def test_torchscript(tmp_path: Path, model: str) -> None:
    async def body(desk: Desk) -> None:
        for count in (1, 3, 8, 1):
            array = rows(count, start=count)
            outputs = await desk.infer(array)
            np.testing.assert_array_equal(values(outputs, 0), array + 1)
            np.testing.assert_array_equal(values(outputs, 1), array * 2)
        assert desk.worker.facts is not None
        assert desk.worker.facts.engine_version.startswith("torch ")
        assert desk.worker.stderr_tail == ""

    run(script_spec(tmp_path, model), body)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_torchscript_keeps_its_threads_to_a_core_each(tmp_path: Path) -> None:
    cores = available_cores()[-2:]

    spec = script_spec(tmp_path, "InTuple")
    dims = (1 << 17,)  # torch runs what is smaller in one thread
    wide = replace(
        spec.config,
        inputs=tuple(replace(tensor, dims=dims) for tensor in spec.config.inputs),
        outputs=tuple(replace(tensor, dims=dims) for tensor in spec.config.outputs),
    )

    async def body(desk: Desk) -> None:
        await desk.infer(np.ones((1, *dims), np.float32))
        assert {cores[:1], cores[1:]} <= affinities(desk.worker.pid)

    run(replace(spec, config=wide, partition=Partition("cpu", 2, cores, 100.0)), body)


def test_a_torchscript_model_that_fails(tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "InPlace")

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(1)))
        assert str(outcome).startswith("output 'second' is missing; the model returned 1 tensors")

    run(replace(spec, warmup=False), body)
    text = fails_to_start(spec)
    assert text.startswith("output 'second' is missing")
    strings = replace(spec.config, inputs=(TensorSpec("input", "BYTES", (4,)),))
    assert "no string tensors" in fails_to_start(replace(spec, config=strings))
    (spec.folder / "model.pt").write_bytes(b"garbage")
    reason = fails_to_start(spec)
    assert "/1 cannot be loaded: RuntimeError:" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("OneRow", "output 'second' has shape [1, 4], expected [2, 4] for a batch of 2"),
        ("Double", "output 'second' is float64, the config says FP32"),
    ],
)
def test_torchscript_outputs_that_are_not_what_the_config_says(tmp_path: Path, model: str, message: str) -> None:
    """They would go into shared memory without a word: libtorch repeats rows and converts types where it copies."""

    async def body(desk: Desk) -> None:
        (outcome,) = await desk.ask(request(rows(2)))
        assert str(outcome) == message

    run(replace(script_spec(tmp_path, model), warmup=False), body)
