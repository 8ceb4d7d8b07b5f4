"""The life of MPS daemons, with real processes that stand in for NVIDIA's programs (see `mps_machine.py`)."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from efserve.errors import MpsFailed, UsageError
from efserve.partitions.compute_mode import ListedGpu, choose, parse_gpus
from efserve.partitions.mps import DaemonState
from efserve.partitions.mps_control import ServerStatus
from efserve.partitions.nvidia_programs import NvidiaPrograms
from mps_daemons import BEFORE, EXCLUSIVE, as_root, daemons_of, gpus_of, modes, start
from mps_machine import Machine, end

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
