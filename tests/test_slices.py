"""The turns that real threads and workers have on a core, as the kernel tells them."""

import asyncio
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from efserve.inference import InferRequest
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from efserve.worker.handle import Worker, WorkerSpec
from efserve.worker.slices import LONG_MS, set_policy, set_slices, slice_ms

LONG_S = 60.0
# Computes for as long as its input says; a second thread waits beside.
MODEL = """
import threading, time

threading.Thread(target=threading.Event().wait, daemon=True).start()


class Model:
    def __init__(self, config, folder):
        pass

    def infer(self, inputs):
        until_s = time.thread_time() + inputs["busy_ms"].max() / 1000
        while time.thread_time() < until_s:
            pass
        return {"y": inputs["busy_ms"]}
"""

try:
    USUAL_MS = slice_ms()
except OSError:
    USUAL_MS = 0.0
pytestmark = pytest.mark.skipif(USUAL_MS == 0, reason="this kernel tells of no slices")


@pytest.fixture(autouse=True)
def usual_slices() -> None:
    assert slice_ms() == USUAL_MS


def slices_of(pid: int) -> set[float]:
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    assert len(threads) >= 2
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
    return {slice_ms(thread) for thread in threads}


def seen_by_a_thread() -> float:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(slice_ms()))
    thread.start()
    thread.join()
    return found[0]


def test_all_threads_have_them_and_those_that_start_later() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        set_slices(LONG_MS)
        assert thread.native_id is not None
        assert [slice_ms(), slice_ms(thread.native_id), seen_by_a_thread()] == [LONG_MS] * 3
    finally:
        leave.set()
        set_slices(0)
    assert [slice_ms(), seen_by_a_thread()] == [USUAL_MS] * 2


def test_a_thread_alone_may_have_them() -> None:
    found: list[float] = []

    def run() -> None:
        set_slices(LONG_MS, threads=(0,))
        found.append(slice_ms())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [*found, slice_ms()] == [LONG_MS, USUAL_MS]


def test_another_policy_keeps_them() -> None:
    set_slices(LONG_MS)
    try:
        set_policy(0, os.SCHED_BATCH)
        assert (os.sched_getscheduler(0), slice_ms()) == (os.SCHED_BATCH, LONG_MS)
        set_policy(0, os.SCHED_OTHER)
        assert (os.sched_getscheduler(0), slice_ms()) == (os.SCHED_OTHER, LONG_MS)
    finally:
        set_slices(0)


def test_a_process_that_is_gone_is_told() -> None:
    with pytest.raises(ProcessLookupError):
        set_policy(2**22 + 1, os.SCHED_BATCH)  # above all pids


@pytest.mark.parametrize("gives_way", [False, True])
def test_a_worker_has_long_slices_while_its_batches_are_long(tmp_path: Path, *, gives_way: bool) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    tensors = ((TensorSpec("busy_ms", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
    spec = WorkerSpec(ModelConfig("busy", "python", 2, *tensors), "1", tmp_path, "python", Partition(), 2)

    async def work() -> None:
        answered = asyncio.Event()
        worker = Worker(spec, on_done=lambda *_: answered.set(), on_death=lambda *_: None)
        await worker.start(LONG_S, gives_way=gives_way)
        try:
            for busy_ms, expected_ms in ((3, LONG_MS), (0, USUAL_MS), (3, LONG_MS)):
                tensor = np.full((1, 1), busy_ms, np.float32).tobytes()
                for _ in range(8):
                    answered.clear()
                    worker.send(0, (InferRequest((tensor,), ((1, 1),), 1, None, lambda _: None),))
                    await answered.wait()
                assert slices_of(worker.pid) == {expected_ms}
        finally:
            await worker.stop(LONG_S)

    async def within_time() -> None:
        await asyncio.wait_for(work(), LONG_S)

    asyncio.run(within_time())
