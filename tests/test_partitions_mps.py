"""The life of MPS daemons, with real processes that stand in for NVIDIA's programs (see `mps_machine.py`)."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from efserve.errors import MpsFailed, MpsHangs, UsageError
from efserve.partitions.compute_mode import ListedGpu, choose, list_gpus, parse_gpus
from efserve.partitions.mps import DaemonState, MpsDaemons, Started, raise_file_limit
from efserve.partitions.mps_control import ServerStatus
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
from mps_machine import Machine, end, machine_in

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Two GPUs, one of which has a compute mode of its own."""
    with machine_in(tmp_path) as machine:
        yield machine


def daemons_of(machine: Machine, deadline_s: float = 10.0) -> MpsDaemons:
    programs = NvidiaPrograms(str(machine.bin / "nvidia-smi"), str(machine.bin / "nvidia-cuda-mps-control"), deadline_s)
    return MpsDaemons(RunDirectory(machine.run_dir), programs)


def gpus_of(daemons: MpsDaemons) -> tuple[ListedGpu, ...]:
    return asyncio.run(list_gpus(daemons.programs))


def start(daemons: MpsDaemons, *, single: bool = False) -> tuple[Started, ...]:
    return asyncio.run(daemons.start(gpus_of(daemons), single=single))


def modes(machine: Machine) -> tuple[str, str]:
    return machine.mode("GPU-a"), machine.mode("GPU-b")


BEFORE = ("Default", "Prohibited")
EXCLUSIVE = ("Exclusive_Process", "Exclusive_Process")


# Which GPUs


def test_gpus_are_read_from_lines() -> None:
    text = "Warning: infoROM is corrupted\n0, GPU-a, Default, [N/A]\n1, GPU-b, Exclusive_Process, Enabled\n\n"
    assert parse_gpus(text) == (
        ListedGpu(0, "GPU-a", "DEFAULT", is_mig=False),
        ListedGpu(1, "GPU-b", "EXCLUSIVE_PROCESS", is_mig=True),
    )


def test_gpus_are_chosen_by_index_or_uuid() -> None:
    a, b = ListedGpu(0, "GPU-a", "DEFAULT", is_mig=False), ListedGpu(1, "GPU-b", "DEFAULT", is_mig=False)
    assert choose((a, b), ()) == (a, b)
    assert choose((a, b), ("1",)) == choose((a, b), ("gpu1",)) == (b,)
    assert choose((a, b), ("GPU-a", "0")) == (a,)
    with pytest.raises(UsageError, match=r"there is no GPU '7'; this machine has 0 \(GPU-a\), 1 \(GPU-b\)"):
        choose((a, b), ("0", "7"))
    mig = replace(b, is_mig=True)
    assert choose((a, mig), ()) == (a,)
    with pytest.raises(MpsFailed, match="MIG mode"):
        choose((a, mig), ("1",))


def test_a_machine_without_the_programs_is_told_what_to_do() -> None:
    with pytest.raises(MpsFailed, match="no no-smi on this machine: MPS needs an NVIDIA GPU"):
        NvidiaPrograms("no-smi", "no-control").found()
    with pytest.raises(MpsFailed, match="no no-control on this machine: install the part of NVIDIA's driver"):
        NvidiaPrograms("bash", "no-control").found()


def test_a_driver_that_hangs_or_has_no_gpu_is_told(machine: Machine) -> None:
    machine.set("hang-smi")
    with pytest.raises(MpsFailed, match=r"does not end within 0\.2 s"):
        gpus_of(daemons_of(machine, 0.2))
    machine.set("hang-smi", on=False)
    (machine.state / "gpus").write_text("")
    with pytest.raises(MpsFailed, match=r"finds no GPU \(No devices were found\)"):
        gpus_of(daemons_of(machine))


# Start, status, stop


@as_root
def test_start_status_stop(machine: Machine) -> None:
    daemons = daemons_of(machine)
    started = start(daemons)
    assert [(one.unit, one.is_new) for one in started] == [("GPU-a", True), ("GPU-b", True)]
    assert started[0].pipe_directory == str(machine.pipes("GPU-a"))
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == [
        "daemon GPU-a mps-GPU-a share=",
        "daemon GPU-b mps-GPU-b share=",
    ]
    assert modes(machine) == EXCLUSIVE
    server = machine.start_server("GPU-a")
    machine.add_client("GPU-a", os.getpid())
    a, b = asyncio.run(daemons.status(gpus_of(daemons)))
    assert (a.state, b.state) == (DaemonState.RUNNING, DaemonState.RUNNING)
    assert (a.compute_mode, a.kept_mode) == ("EXCLUSIVE_PROCESS", "DEFAULT")
    assert set(a.processes) == {server, *machine.daemons()} - set(b.processes)
    (told,) = a.servers
    assert (told.pid, told.uid, told.status, told.clients) == (
        server,
        os.geteuid(),
        ServerStatus.ACTIVE,
        (os.getpid(),),
    )
    assert asyncio.run(daemons.stop()) == (("GPU-a", "GPU-b"), True)
    assert machine.daemons() == []
    assert modes(machine) == BEFORE
    assert {fact.state for fact in asyncio.run(daemons.status(gpus_of(daemons)))} == {DaemonState.ABSENT}
    assert asyncio.run(daemons.stop()) == ((), True)


def test_who_is_not_root_leaves_the_mode(machine: Machine) -> None:
    if os.geteuid() == 0:
        pytest.skip("root sets compute modes")
    daemons = daemons_of(machine)
    start(daemons)
    assert modes(machine) == BEFORE
    assert asyncio.run(daemons.stop()) == (("GPU-a", "GPU-b"), True)
    assert not [call for call in machine.calls() if " -c " in call]


@as_root
def test_a_second_start_leaves_what_runs(machine: Machine) -> None:
    daemons = daemons_of(machine)
    start(daemons)
    before = machine.daemons()
    machine.take_calls()
    assert [one.is_new for one in start(daemons)] == [False, False]
    assert machine.daemons() == before
    assert not [call for call in machine.take_calls() if call.startswith("daemon") or " -c " in call]


@as_root
def test_what_the_script_started_is_seen_and_stopped_and_the_other_way_round(machine: Machine) -> None:
    daemons = daemons_of(machine)
    machine.script("start")
    assert [one.is_new for one in start(daemons)] == [False, False]
    assert asyncio.run(daemons.stop()) == (("GPU-a", "GPU-b"), True)
    assert modes(machine) == BEFORE
    start(daemons)
    assert machine.script("status").returncode == 0
    assert machine.script("start").stdout.count("MPS is running already") == 2
    assert machine.script("stop").returncode == 0
    assert machine.daemons() == []
    assert modes(machine) == BEFORE


@as_root
def test_a_single_daemon_excludes_those_of_gpus(machine: Machine) -> None:
    daemons = daemons_of(machine)
    (started,) = start(daemons, single=True)
    assert started.unit == "all"
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == ["daemon GPU-a,GPU-b mps-all share="]
    assert {fact.unit for fact in asyncio.run(daemons.status(gpus_of(daemons)))} == {"all"}
    with pytest.raises(MpsFailed, match="started here for 'all', which excludes a daemon for 'GPU-a'"):
        start(daemons)
    asyncio.run(daemons.stop())
    assert modes(machine) == BEFORE
    start(daemons)
    with pytest.raises(MpsFailed, match="started here for 'GPU-a', which excludes a daemon for 'all'"):
        start(daemons, single=True)


def test_what_a_crash_left_of_the_other_kind_does_not_exclude(machine: Machine) -> None:
    daemons = daemons_of(machine)
    start(daemons, single=True)
    for pid in machine.daemons():
        end(pid)
    assert [one.unit for one in start(daemons)] == ["GPU-a", "GPU-b"]
    assert daemons.directory.units() == ("GPU-a", "GPU-b")


def test_gpus_can_be_started_one_by_one(machine: Machine) -> None:
    daemons = daemons_of(machine)
    a, b = gpus_of(daemons)
    asyncio.run(daemons.start((b,)))
    assert [fact.state for fact in asyncio.run(daemons.status((a, b)))] == [DaemonState.ABSENT, DaemonState.RUNNING]
    asyncio.run(daemons.start((a,)))
    assert len(machine.daemons()) == 2


def test_a_share_in_the_environment_does_not_become_that_of_all_clients(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    start(daemons_of(machine))
    assert "daemon GPU-a mps-GPU-a share=" in machine.calls()


# What goes wrong


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
        start(daemons_of(machine, 0.5))
    assert machine.daemons() == []
    assert modes(machine) == BEFORE


@as_root
def test_a_start_that_is_cancelled_leaves_nothing(machine: Machine) -> None:
    """As Ctrl-C does, in the middle of the start of a daemon."""
    machine.set("hang-d")
    daemons = daemons_of(machine)
    gpus = gpus_of(daemons)

    async def broken_off() -> None:
        starting = asyncio.ensure_future(daemons.start(gpus))
        while not machine.daemons():  # noqa: ASYNC110 - another process tells by what it does
            await asyncio.sleep(0)
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


def replace_deadline(daemons: MpsDaemons, deadline_s: float) -> MpsDaemons:
    return MpsDaemons(daemons.directory, replace(daemons.programs, deadline_s=deadline_s))


def test_a_hanging_daemon_is_told_and_not_started_twice(machine: Machine) -> None:
    daemons = daemons_of(machine)
    start(daemons)
    machine.set("hang")
    impatient = replace_deadline(daemons, 0.3)
    with pytest.raises(MpsHangs, match=r"does not answer within 0\.3 s; end it with: efserve mps stop --run-dir"):
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


# Used by servers


@as_root
def test_the_last_user_ends_a_daemon_that_a_server_started(machine: Machine) -> None:
    daemons = daemons_of(machine)
    a, _ = gpus_of(daemons)

    async def life() -> None:
        unit, first = await daemons.use(a)
        _, second = await daemons.use(a)
        assert await daemons.leave(unit, first)
        assert len(machine.daemons()) == 1
        assert await daemons.leave(unit, second)

    asyncio.run(life())
    assert machine.daemons() == []
    assert modes(machine) == BEFORE
    assert daemons.directory.units() == ()


def test_a_daemon_that_a_person_started_outlives_its_users(machine: Machine) -> None:
    daemons = daemons_of(machine)
    a, b = gpus_of(daemons)
    asyncio.run(daemons.start((a,)))

    async def life(gpu: ListedGpu, *, taken_over: bool) -> None:
        unit, lease = await daemons.use(gpu)
        if taken_over:
            await daemons.start((gpu,))
        await daemons.leave(unit, lease)

    asyncio.run(life(a, taken_over=False))
    asyncio.run(life(b, taken_over=True))
    assert len(machine.daemons()) == 2


@as_root
def test_what_a_killed_server_left_is_used_and_ended_by_the_next(machine: Machine) -> None:
    daemons = daemons_of(machine)
    script = f"""
import asyncio
from pathlib import Path
from efserve.partitions.compute_mode import list_gpus
from efserve.partitions.mps import MpsDaemons
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
programs = NvidiaPrograms({daemons.programs.smi!r}, {daemons.programs.control!r})
daemons = MpsDaemons(RunDirectory(Path({str(machine.run_dir)!r})), programs)
async def life():
    gpus = await list_gpus(programs)
    print(await daemons.use(gpus[0]), flush=True)
    await asyncio.Event().wait()
asyncio.run(life())
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner, owner.stdout as told:
        assert b"GPU-a" in told.readline()
        owner.kill()
    (left,) = machine.daemons()
    assert modes(machine) == ("Exclusive_Process", "Prohibited")

    async def next_life() -> None:
        unit, lease = await daemons.use(gpus_of_now)
        assert machine.daemons() == [left]
        assert await daemons.leave(unit, lease)

    gpus_of_now = gpus_of(daemons)[0]
    asyncio.run(next_life())
    assert machine.daemons() == []
    assert modes(machine) == BEFORE


def test_a_single_daemon_serves_users_of_every_gpu(machine: Machine) -> None:
    daemons = daemons_of(machine)
    start(daemons, single=True)
    for gpu in gpus_of(daemons):
        assert asyncio.run(daemons.use(gpu))[0] == "all"
    for pid in machine.daemons():
        end(pid)
    unit, lease = asyncio.run(daemons.use(gpus_of(daemons)[1]))
    assert unit == "GPU-b"
    assert lease is not None
    assert daemons.directory.units() == ("GPU-b",)
