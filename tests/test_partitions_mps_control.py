"""Questions to an MPS daemon: what its answers mean, and what becomes of those that do not come."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.errors import MpsFailed, MpsHangs
from efserve.partitions.mps_control import (
    ListedClient,
    MpsControl,
    ServerStatus,
    parse_pids,
    parse_ps,
    parse_status,
)
from efserve.partitions.mps_log import FaultLog
from efserve.partitions.nvidia_programs import NvidiaPrograms
from mps_machine import Machine, machine_in

# The example in NVIDIA's document "Multi-Process Service", section "Client Early Termination".
PS = """PID   ID  SERVER   DEVICE             NAMESPACE      COMMAND
9741  0   6472     GPU-cb1213a3-d6a4-be7f    4026531836     ./nbody
9743  0   6472     GPU-cb1213a3-d6a4-be7f    4026531836     ./matrixMul
"""


def test_the_table_of_clients() -> None:
    assert parse_ps(PS) == (
        ListedClient(9741, 6472, "GPU-cb1213a3-d6a4-be7f", "./nbody"),
        ListedClient(9743, 6472, "GPU-cb1213a3-d6a4-be7f", "./matrixMul"),
    )


def test_columns_of_a_table_are_found_by_their_names() -> None:
    text = "warning: something\nSERVER PID COMMAND ATTRIBUTES\n6472 9741 ./nbody none\nshort\n"
    assert parse_ps(text) == (ListedClient(9741, 6472, "", "./nbody"),)


@pytest.mark.parametrize("text", ["", "\n", "Cannot find MPS control daemon process\n", "PID SERVER\nx y\n"])
def test_what_is_no_table_has_no_clients(text: str) -> None:
    assert parse_ps(text) == ()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("ACTIVE\n", ServerStatus.ACTIVE),
        ("FAULT\n", ServerStatus.FAULT),
        ("Server status: FAULT\n", ServerStatus.FAULT),
        ("INITIALIZING\n", ServerStatus.OTHER),
        ("INACTIVE\n", ServerStatus.OTHER),
        ("", ServerStatus.OTHER),
    ],
)
def test_the_status_of_a_server(text: str, status: ServerStatus) -> None:
    assert parse_status(text) is status


@given(st.lists(st.integers(1, 2**22)))
def test_process_ids_stand_one_to_a_line(pids: list[int]) -> None:
    assert parse_pids("".join(f" {pid}\n" for pid in pids) + "no number\n") == tuple(pids)


@given(st.text())
def test_no_answer_is_too_strange_to_read(text: str) -> None:
    parse_pids(text)
    parse_ps(text)
    parse_status(text)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A daemon runs for GPU-a."""
    with machine_in(tmp_path) as machine:
        machine.script("start")
        yield machine


def control_of(machine: Machine, deadline_s: float = 10.0) -> MpsControl:
    programs = NvidiaPrograms("", str(machine.bin / "nvidia-cuda-mps-control"), deadline_s)
    return MpsControl(programs, machine.pipes("GPU-a"))


def test_a_daemon_tells_its_servers_and_clients(machine: Machine) -> None:
    control = control_of(machine)
    assert asyncio.run(control.servers()) == ()
    server = machine.start_server("GPU-a")
    machine.add_client("GPU-a", os.getpid())
    assert asyncio.run(control.servers()) == (server,)
    assert asyncio.run(control.all_clients()) == {server: (os.getpid(),)}
    assert [client.pid for client in asyncio.run(control.listed())] == [os.getpid()]
    assert asyncio.run(control.server_status(server)) is ServerStatus.ACTIVE
    machine.make_faulty("GPU-a")
    assert asyncio.run(control.server_status(server)) is ServerStatus.FAULT
    asyncio.run(control.terminate_client(server, os.getpid()))
    assert asyncio.run(control.clients(server)) == ()


def test_a_daemon_that_hangs_is_left_at_the_deadline(machine: Machine) -> None:
    machine.set("hang")
    before_s = time.monotonic()
    with pytest.raises(MpsHangs, match=r"does not answer 'get_server_list' within 0\.2 s"):
        asyncio.run(control_of(machine, 0.2).servers())
    assert time.monotonic() - before_s < 60  # not the five minutes that the stand-in would sleep


def test_a_daemon_that_refuses_or_is_missing_is_told_in_its_words(machine: Machine) -> None:
    machine.set("forbidden")
    with pytest.raises(MpsFailed, match="refuses 'get_server_list': User did not send valid credentials"):
        asyncio.run(control_of(machine).servers())
    machine.set("forbidden", on=False)
    machine.script("stop")
    with pytest.raises(MpsFailed, match="Cannot find MPS control daemon process"):
        asyncio.run(control_of(machine).servers())


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    control = MpsControl(NvidiaPrograms("", str(tmp_path / "no-such-program")), tmp_path)
    with pytest.raises(MpsFailed, match=r"no-such-program cannot be started: No such file"):
        asyncio.run(control.servers())


def test_new_faults_in_a_log(tmp_path: Path) -> None:
    """The words of the second line are an example; which ones a driver uses was not seen."""
    path = tmp_path / "server.log"
    path.write_text("[2026-01-01 00:00:00.000 Server 7] an old fatal error\n")
    faults = FaultLog(tmp_path)
    assert faults.new_fault() == ""
    fault = "[2026-01-01 00:00:01.000 Server 7] Server is handling a fatal GPU error."
    with path.open("a") as file:
        file.write(f"[2026-01-01 00:00:01.000 Server 7] New client 9 connected\n{fault}\nhalf a fatal li")
        file.flush()
        assert faults.new_fault() == fault
        file.write("ne\n")
        file.flush()
        assert faults.new_fault() == "half a fatal line"
    assert faults.new_fault() == ""
    path.write_text("FAULT\n")  # a new server's log
    assert faults.new_fault() == "FAULT"


def test_a_log_that_comes_later_counts_from_its_start(tmp_path: Path) -> None:
    faults = FaultLog(tmp_path)
    assert faults.new_fault() == ""
    (tmp_path / "server.log").write_text("a fatal error\n")
    assert faults.new_fault() == "a fatal error"
