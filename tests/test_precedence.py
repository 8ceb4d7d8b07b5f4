"""Real processes that give way to others: what the kernel says of them meanwhile and afterwards."""

import asyncio
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efserve.worker.precedence import give_way

LONG_S = 30.0
# A process with a second thread and a child; says so when they are there.
FAMILY = """
import subprocess, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
sys.stdin.read()
child.kill()
"""


@contextmanager
def family() -> Iterator[tuple[int, list[int]]]:
    """A process that leads a session, and all its threads and those of its child."""
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        threads = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(threads) == 2
        yield process.pid, [*threads, child]
        process.communicate()


def classes(threads: list[int]) -> set[int]:
    return {os.sched_getscheduler(thread) for thread in threads}


def weight(pid: int) -> str:
    """Of the process' autogroup; empty where there are none, or where nobody has led a session since the start."""
    path = Path(f"/proc/{pid}/autogroup")
    return path.read_text().rpartition(" ")[2].strip() if path.exists() else ""


def may_be_undone() -> bool:
    """Whether the kernel lets a process of ours out of SCHED_IDLE again, by trying."""
    change = "os.sched_setscheduler(0, {}, os.sched_param(0))"
    script = f"import os; {change.format('os.SCHED_IDLE')}; {change.format('os.SCHED_OTHER')}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(work(), LONG_S)

    asyncio.run(whole())


def test_all_threads_give_way_until_it_is_settled() -> None:
    async def work() -> None:
        with family() as (pid, threads):
            settled = asyncio.Event()
            giving = asyncio.create_task(give_way(pid, settled, LONG_S))
            await asyncio.sleep(0)
            assert classes(threads) == {os.SCHED_IDLE if may_be_undone() else os.SCHED_OTHER}
            assert weight(pid) in ("19", "")
            settled.set()
            await giving
            assert classes(threads) == {os.SCHED_OTHER}
            assert weight(pid) in ("0", "")
            assert weight(os.getpid()) in ("0", "")

    run(work)


def test_what_is_never_settled_does_not_give_way_for_ever() -> None:
    async def work() -> None:
        with family() as (pid, threads):
            await give_way(pid, asyncio.Event(), 0.02)
            assert classes(threads) == {os.SCHED_OTHER}
            assert weight(pid) in ("0", "")

    run(work)


def test_a_process_that_ends_meanwhile_is_no_error() -> None:
    async def work() -> None:
        with family() as (pid, _):
            settled = asyncio.Event()
            giving = asyncio.create_task(give_way(pid, settled, LONG_S))
            await asyncio.sleep(0)
        settled.set()
        await giving
        await give_way(pid, settled, LONG_S)

    run(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_who_could_not_undo_it_does_not_make_a_process_idle() -> None:
    script = """
        import asyncio, os, subprocess
        from efserve.worker.precedence import give_way

        async def work():
            process = subprocess.Popen(["sleep", "60"], start_new_session=True)
            try:
                settled = asyncio.Event()
                giving = asyncio.create_task(give_way(process.pid, settled, 30))
                await asyncio.sleep(0)
                print(os.sched_getscheduler(process.pid) == os.SCHED_OTHER)
                settled.set()
                await giving
                path = f"/proc/{process.pid}/autogroup"
                print(not os.path.exists(path) or open(path).read().split()[-1:] in ([], ["0"]))
            finally:
                process.kill()
                process.wait()

        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        asyncio.run(work())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=LONG_S
    )
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only this one can tell of itself as another")
def test_another_class_needs_no_calls_that_not_every_processor_is_known_to_have() -> None:
    script = """
        import ctypes, os, platform
        from efserve.worker.slices import set_policy

        ctypes.CDLL(None).personality(8)
        set_policy(0, os.SCHED_BATCH)
        print(platform.machine(), os.sched_getscheduler(0) == os.SCHED_BATCH)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=LONG_S
    )
    assert done.stdout.split() == ["i686", "True"]
