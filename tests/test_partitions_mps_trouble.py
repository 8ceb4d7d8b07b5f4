"""MPS daemons that do not start, hang, do not quit or crash, and modes that cannot be set; with real processes."""

import asyncio
import os
import resource
import subprocess
from pathlib import Path

import pytest

from efserve.errors import MpsFailed, MpsHangs
from efserve.partitions.mps import DaemonState, MpsDaemons, Started, raise_file_limit
from efserve.partitions.mps_directory import RunDirectory
from mps_daemons import BEFORE, as_root, daemons_of, gpus_of, modes, replace_deadline, start
from mps_machine import Machine, end


@as_root
def test_a_daemon_that_does_not_start_leaves_nothing(machine: Machine) -> None:
    machine.set("refuse")
    daemons = daemons_of(machine)
    with pytest.raises(MpsFailed, match=r"the MPS daemon of GPU-a did not start \(no licence for this GPU\); see "):
        start(daemons)
    assert modes(machine) == BEFORE
    assert daemons.directory.units() == ()


@as_root
@pytest.mark.parametrize("trouble", ["hang-d", "hang-get_server_list"])
def test_a_start_that_hangs_leaves_nothing(machine: Machine, trouble: str) -> None:
    machine.set(trouble)
    with pytest.raises(MpsFailed):
        start(daemons_of(machine, 1.0))
    assert machine.daemons() == []
    assert modes(machine) == BEFORE


@as_root
def test_a_start_that_is_cancelled_leaves_nothing(machine: Machine) -> None:
    """As Ctrl-C does, in the middle of the start of a daemon."""
    machine.set("hang-d")
    daemons = daemons_of(machine)
    gpus = gpus_of(daemons)

    async def broken_off() -> None:
        async with machine.heard() as heard:
            starting = asyncio.ensure_future(daemons.start(gpus))
            assert await heard.readline() == b"hang\n"
        assert machine.daemons()
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()

    asyncio.run(asyncio.wait_for(broken_off(), 60))
    assert machine.daemons() == []
    assert modes(machine) == BEFORE
    assert daemons.directory.units() == ()


@as_root
@pytest.mark.parametrize("trouble", ["hang", "hang-quit", "stubborn"])
def test_a_daemon_that_does_not_quit_is_ended_by_signals(machine: Machine, trouble: str) -> None:
    if trouble == "stubborn":  # which a daemon is from its birth
        machine.set(trouble)
    daemons = daemons_of(machine)
    start(daemons)
    machine.start_server("GPU-a")
    machine.set(trouble)
    assert asyncio.run(replace_deadline(daemons, 0.3).stop()) == (("GPU-a", "GPU-b"), True)
    assert machine.daemons() == []
    assert modes(machine) == BEFORE


def test_a_hanging_daemon_is_told_and_not_started_twice(machine: Machine) -> None:
    daemons = daemons_of(machine)
    start(daemons)
    machine.set("hang")
    impatient = replace_deadline(daemons, 1.0)
    with pytest.raises(MpsHangs, match=r"does not answer within 1 s; end it with: efserve mps stop --run-dir"):
        start(impatient)
    assert {fact.state for fact in asyncio.run(impatient.status(gpus_of(daemons)))} == {DaemonState.HANGING}
    assert len(machine.daemons()) == 2


@as_root
def test_what_a_crash_has_left_is_cleared_away(machine: Machine) -> None:
    """The daemons die, their folders stay; a server of one of them lives on."""
    daemons = daemons_of(machine)
    start(daemons)
    server = machine.start_server("GPU-a")
    for pid in machine.daemons():
        if pid != server:
            end(pid)
    assert [one.is_new for one in start(daemons)] == [True, True]
    assert server not in machine.daemons()
    assert len(machine.daemons()) == 2
    assert asyncio.run(daemons.stop())[1]
    assert modes(machine) == BEFORE


def test_a_process_that_is_no_daemon_or_another_one_is_not_ended(machine: Machine) -> None:
    """A number in a pid file goes to another process, and to the daemon of another GPU."""
    other = subprocess.Popen(["tail", "-f", "/dev/null"])
    daemons = daemons_of(machine)
    try:
        a, b = gpus_of(daemons)
        asyncio.run(daemons.start((a, b)))
        a_pid, b_pid = (fact.processes[0] for fact in asyncio.run(daemons.status((a, b))))
        end(a_pid)
        pid_file = machine.pipes("GPU-a") / "nvidia-cuda-mps-control.pid"
        for number in (other.pid, b_pid):
            pid_file.write_text(f"{number}\n")
            assert daemons.directory.processes("GPU-a") == ()
        asyncio.run(daemons.start((a,)))
        assert other.poll() is None
        assert b_pid in machine.daemons()
    finally:
        other.kill()
        other.wait(10)


@as_root
def test_modes_that_cannot_be_set_do_not_keep_mps_from_starting(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.set("locked")
    daemons = daemons_of(machine)
    start(daemons)
    assert "cannot set the compute mode of GPU-a" in caplog.text
    machine.set("locked", on=False)
    assert asyncio.run(daemons.stop())[1]
    assert modes(machine) == BEFORE


@as_root
def test_a_mode_that_cannot_be_restored_is_told_and_kept_for_the_next_stop(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    daemons = daemons_of(machine)
    start(daemons)
    machine.set("locked")
    assert asyncio.run(daemons.stop()) == (("GPU-a", "GPU-b"), False)
    assert "as root: nvidia-smi -i GPU-b -c PROHIBITED" in caplog.text
    machine.set("locked", on=False)
    assert asyncio.run(daemons.stop()) == ((), True)
    assert modes(machine) == BEFORE


@as_root
@pytest.mark.parametrize("kept", ["", "nonsense\n"])
def test_a_kept_mode_that_is_unreadable_becomes_the_default(machine: Machine, kept: str) -> None:
    daemons = daemons_of(machine)
    start(daemons)
    (machine.run_dir / "mode-GPU-b").write_text(kept)
    asyncio.run(daemons.stop())
    assert modes(machine) == ("Default", "Default")


def test_a_run_directory_that_cannot_serve_is_told(machine: Machine, tmp_path: Path) -> None:
    daemons = daemons_of(machine)
    gpus = gpus_of(daemons)
    (tmp_path / "file").touch()
    for path, says in [(tmp_path / "file", "cannot make the run directory"), (tmp_path / ("x" * 100), "at most 107")]:
        with pytest.raises(MpsFailed, match=says):
            asyncio.run(MpsDaemons(RunDirectory(path), daemons.programs).start(gpus))


@as_root
def test_the_run_directory_of_another_user_is_refused(machine: Machine) -> None:
    machine.run_dir.mkdir()
    os.chown(machine.run_dir, 12345, 12345)
    with pytest.raises(MpsFailed, match="belongs to user 12345, not to you"):
        start(daemons_of(machine))


def test_two_starts_wait_for_one_another(machine: Machine) -> None:
    daemons = daemons_of(machine)
    gpus = gpus_of(daemons)

    async def twice() -> tuple[tuple[Started, ...], tuple[Started, ...]]:
        return await asyncio.gather(daemons.start(gpus), daemons.start(gpus))

    first, second = asyncio.run(twice())
    assert sorted([first[0].is_new, second[0].is_new]) == [False, True]
    assert len(machine.daemons()) == 2


def test_the_file_limit_is_raised_as_far_as_it_goes() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(16384, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
