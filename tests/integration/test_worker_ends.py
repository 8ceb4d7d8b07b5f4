"""Ends of real worker processes: deaths at every stage, stops, deadlines, and that nothing is left behind."""

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import uvloop

import onnx_models
from efserve.devices.cpu import available_cores
from efserve.errors import LoadFailed
from efserve.worker.handle import WorkerState
from leaks import children, is_running, mapped_areas, open_areas, open_descriptors
from worker_desk import DEADLINE_S, Desk, onnx_spec, opened, request, rows, run, values, zoo_spec


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exits_in_infer", "exited with code 3"),
        ("killed_in_infer", "killed by SIGKILL"),
        ("loses_device", "exited with code 1"),
    ],
)
def test_death_with_a_batch_in_hand(name: str, says: str) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        desk.send(1, request(rows(1)))
        await desk.dead.wait()
        assert len(desk.deaths) == 1
        assert desk.deaths[0].startswith(says)
        assert not any(future.done() for future in desk.answers.values())
        desk.worker.kill()

    run(zoo_spec(name), body)


def test_a_kill_is_noticed_at_once(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        start_s = monotonic()
        os.kill(desk.worker.pid, signal.SIGKILL)
        await desk.dead.wait()
        assert monotonic() - start_s < 5
        assert desk.deaths == ["killed by SIGKILL"]
        assert desk.worker.ending == "killed by SIGKILL"

    run(onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4))), body)


def test_a_chatty_model_neither_blocks_nor_breaks_anything() -> None:
    async def body(desk: Desk) -> None:
        for start in range(3):
            np.testing.assert_array_equal(values(await desk.infer(rows(2, start=start))), rows(2, start=start))
        os.kill(desk.worker.pid, signal.SIGKILL)
        await desk.dead.wait()
        assert "I have so much to say" in desk.deaths[0]
        assert len(desk.deaths[0]) < 20_000

    run(zoo_spec("chatty"), body)


def test_an_interrupt_is_not_for_the_worker() -> None:
    async def body(desk: Desk) -> None:
        assert os.getpgid(desk.worker.pid) == os.getsid(desk.worker.pid) == desk.worker.pid
        os.kill(desk.worker.pid, signal.SIGINT)
        np.testing.assert_array_equal(values(await desk.infer(rows(1))), rows(1))

    run(zoo_spec("slow", delay_ms="0"), body)


PARENT_MODEL = """
import os, signal, subprocess, sys

class Model:
    def __init__(self, config, folder):
        self.child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        os.write(2, b"%d" % self.child.pid)

    def infer(self, inputs):
        os.close(int(sys.argv[3]))
        signal.pause()
"""


def test_what_a_model_starts_ends_with_it_and_hides_no_death(tmp_path: Path) -> None:
    """It closes its control socket and goes on for ever, while its child holds its pipes."""
    (tmp_path / "model.py").write_text(PARENT_MODEL)

    async def body(desk: Desk) -> None:
        grandchild = os.pidfd_open(int(desk.worker.stderr_tail))
        desk.send(0, request(rows(1)))
        await desk.dead.wait()
        assert desk.deaths[0].startswith("closed its connection and was killed by SIGKILL")
        assert select.select([grandchild], [], [], 10)[0] == [grandchild]
        os.close(grandchild)

    run(replace(zoo_spec("slow"), folder=tmp_path), body)


def test_a_stop_lets_the_worker_finish(tmp_path: Path) -> None:
    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        desk.send(1, request(rows(2)))
        await desk.worker.stop(DEADLINE_S)
        assert all(future.done() for future in desk.answers.values())
        assert desk.worker.ending == "exited with code 0"
        assert desk.deaths == []

    run(zoo_spec("slow", delay_ms="20"), body)


def test_a_worker_that_hangs_is_stopped_all_the_same(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    async def body(desk: Desk) -> None:
        desk.send(0, request(rows(1)))
        await opened(fifo)
        await asyncio.gather(desk.worker.stop(0.1), desk.worker.stop(0.1))
        assert desk.worker.ending == "killed by SIGTERM"
        assert desk.deaths == []
        assert not desk.answers[0].done()

    run(zoo_spec("hangs_in_infer", started=str(fifo)), body)


class Partings:
    """Notes which processes it was told of while they lived."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, pid: int) -> None:
        await asyncio.sleep(0)
        assert is_running(pid)
        self.seen.append(pid)


def test_what_is_to_be_done_before_a_kill_is_done_before() -> None:
    async def whole() -> None:
        partings = Partings()
        async with Desk(zoo_spec("slow", delay_ms="0"), before_kill=partings) as desk:
            desk.worker.kill()
            desk.worker.kill()
            assert desk.worker.state is WorkerState.READY
            await desk.dead.wait()
            assert desk.deaths == ["killed by SIGKILL"]
        assert partings.seen == [desk.worker.pid]
        async with Desk(zoo_spec("slow", delay_ms="0"), before_kill=partings) as desk:
            pass
        assert desk.worker.ending == "exited with code 0"  # as it was asked to
        assert len(partings.seen) == 1

    uvloop.run(whole())


def test_a_worker_that_hangs_parts_before_it_is_ended(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    async def whole() -> None:
        partings = Partings()
        async with Desk(zoo_spec("hangs_in_infer", started=str(fifo)), before_kill=partings) as desk:
            desk.send(0, request(rows(1)))
            await opened(fifo)
            await desk.worker.stop(0.1)
            assert desk.worker.ending == "killed by SIGTERM"
        assert partings.seen == [desk.worker.pid]

    uvloop.run(whole())


def test_a_start_that_takes_too_long_parts_before_its_kill() -> None:
    async def whole() -> None:
        partings = Partings()
        desk = Desk(zoo_spec("never_ready"), before_kill=partings)
        with pytest.raises(LoadFailed, match="not ready within"):
            await desk.worker.start(0.5)
        assert partings.seen == [desk.worker.pid]

    uvloop.run(whole())


def test_a_worker_that_no_signal_ends_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """As one is for which the kernel waits: SIGSTOP keeps SIGTERM from it, and SIGKILL is held back."""

    async def whole() -> None:
        before = open_descriptors()
        asked, may_end = count(1), asyncio.Event()

        async def hold(_pid: int) -> None:
            if next(asked) > 1:
                await may_end.wait()

        desk = Desk(zoo_spec("slow", delay_ms="0"), before_kill=hold)
        await desk.worker.start(DEADLINE_S)
        os.kill(desk.worker.pid, signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, desk.worker.pid, os.WSTOPPED)
        async with asyncio.timeout(DEADLINE_S):
            await desk.worker.stop(0, kill_s=0.01)
            await desk.worker.stop(0, kill_s=DEADLINE_S)  # it is waited for once
        assert is_running(desk.worker.pid)
        pidfd = os.pidfd_open(desk.worker.pid)
        may_end.set()
        while desk.worker.state is not WorkerState.DEAD:
            assert await asyncio.to_thread(select.select, [pidfd], [], [], DEADLINE_S) != ([], [], [])
        os.close(pidfd)
        assert desk.deaths == []
        assert open_descriptors() == before
        pid = desk.worker.pid
        assert [f"slow/1 worker process {pid} has not ended within 0.01 s" in line for line in caplog.messages] == [
            True
        ]

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def test_a_worker_that_reads_nothing_is_killed() -> None:
    async def body(desk: Desk) -> None:
        os.kill(desk.worker.pid, signal.SIGSTOP)
        for _ in range(1000):
            desk.send(0, request(rows(1)))
        await desk.dead.wait()
        assert desk.deaths == ["read none of its batches and was killed by SIGKILL"]

    run(zoo_spec("hangs_in_infer"), body)


def test_a_start_without_descriptors_fails_and_leaves_nothing(tmp_path: Path) -> None:
    spec = onnx_spec(onnx_models.save(tmp_path, "identity", onnx_models.identity(4)))

    async def start(descriptors: int) -> bool:
        """Whether a worker starts with so many descriptors more."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = len(open_descriptors())
        desk = Desk(spec)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + descriptors, hard))
        try:
            await desk.worker.start(DEADLINE_S)
        except LoadFailed:
            assert desk.worker.state is WorkerState.DEAD
            return False
        else:
            await desk.worker.stop(DEADLINE_S)
            return True
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert len(open_descriptors()) == before

    async def whole() -> None:
        started = [await start(descriptors) for descriptors in range(40)]
        assert not started[0]
        assert started[-1]

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def test_a_load_that_gives_way_ends_though_nothing_is_left_over() -> None:
    async def whole() -> None:
        desk = Desk(zoo_spec("echo"))
        await desk.worker.start(4, gives_way=True)
        await desk.worker.stop(DEADLINE_S)
        assert desk.worker.ending == "exited with code 0"

    spins = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spins) for _ in range(2 * len(available_cores()))]
    try:
        uvloop.run(whole())
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_stop_ends_a_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")

    async def whole() -> None:
        desk = Desk(zoo_spec("never_ready", started=str(tmp_path / "started")))
        start = asyncio.create_task(desk.worker.start(DEADLINE_S))
        await opened(tmp_path / "started")
        await desk.worker.stop(DEADLINE_S)
        with pytest.raises(LoadFailed, match="stopped while it was starting"):
            await start
        assert desk.worker.ending == "killed by SIGTERM"

    uvloop.run(whole())


def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")

    async def whole() -> None:
        desk = Desk(zoo_spec("never_ready", started=str(tmp_path / "started")))
        start = asyncio.create_task(desk.worker.start(DEADLINE_S))
        await opened(tmp_path / "started")
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not is_running(desk.worker.pid)
        assert desk.worker.state is WorkerState.DEAD

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


def test_a_start_that_has_only_just_begun_ends_as_well() -> None:
    async def whole() -> None:
        desks = [Desk(zoo_spec("echo")) for _ in range(2)]
        stopped, cancelled = (asyncio.create_task(desk.worker.start(DEADLINE_S)) for desk in desks)
        await asyncio.sleep(0)
        assert [desk.worker.pid for desk in desks] == [0, 0]
        cancelled.cancel()
        await desks[0].worker.stop(DEADLINE_S)
        with pytest.raises(LoadFailed, match="stopped while it was starting"):
            await stopped
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert {desk.worker.state for desk in desks} == {WorkerState.DEAD}

    uvloop.run(asyncio.sleep(0))  # what the first loop of a process opens stays open
    before = open_descriptors()
    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())
    assert len(open_descriptors()) <= len(before)


def test_forty_lives_leave_nothing() -> None:
    """Eight at a time; half of them stop, half are killed."""

    async def life(number: int) -> None:
        desk = Desk(zoo_spec("slow", delay_ms="0"))
        await desk.worker.start(DEADLINE_S)
        await desk.infer(rows(1, start=number))
        if number % 2:
            desk.worker.kill()
            await desk.dead.wait()
        await desk.worker.stop(DEADLINE_S)

    async def whole() -> None:
        await life(0)
        before = open_descriptors()
        for start in range(0, 40, 8):
            await asyncio.gather(*[life(start + index) for index in range(8)])
        assert open_descriptors() == before

    uvloop.run(whole())
    assert (mapped_areas(), open_areas(), children()) == (0, 0, set())


GATEWAY = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from worker_desk import Desk, opened, request, rows, zoo_spec

async def main(name, fifo):
    desk = Desk(zoo_spec(name, started=fifo))
    start = asyncio.create_task(desk.worker.start(60))
    if name == "never_ready":
        await opened(Path(fifo))
    else:
        await start
    if name == "hangs_in_infer":
        desk.send(0, request(rows(1)))
        await opened(Path(fifo))
    print(desk.worker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[3:]))
"""


@pytest.mark.parametrize("name", ["never_ready", "hangs_in_infer", "wrong_rows"])
def test_no_worker_outlives_a_killed_gateway(tmp_path: Path, name: str) -> None:
    """Neither while it loads, nor with a batch in hand, nor while it is idle."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    here = Path(__file__).parent
    command = [sys.executable, "-c", GATEWAY, str(here), str(here.parent), name, str(fifo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        worker = os.pidfd_open(int(gateway.stdout.readline()))
        gateway.kill()
    assert select.select([worker], [], [], 10)[0] == [worker], "the worker lives on"
    os.close(worker)
