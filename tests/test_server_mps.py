"""MPS for a running server: stand-in daemons that are real processes, and workers that are just processes."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from efserve.errors import LoadFailed, MpsFailed
from efserve.partition import Obtained, Partition
from efserve.partitions.mps import MpsDaemons
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
from efserve.server.mps import MpsService
from mps_machine import Machine, end

A, B = Partition(device="GPU-a", share_pct=50), Partition(device="GPU-b", share_pct=50)
WHOLE = Partition(device="GPU-b")
CPU = Partition()
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


def service_of(machine: Machine, mode: str, *, heal_s: float = 20.0, deadline_s: float = 10.0) -> MpsService:
    programs = NvidiaPrograms(str(machine.bin / "nvidia-smi"), str(machine.bin / "nvidia-cuda-mps-control"), deadline_s)
    return MpsService(MpsDaemons(RunDirectory(machine.run_dir), programs), mode, look_s=0.05, heal_s=heal_s)


def run(life: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await life()

    asyncio.run(whole())


class ProcessWorker:
    """A process that is a client of a daemon until it is killed."""

    def __init__(self, machine: Machine, service: MpsService, uuid: str) -> None:
        self.ended = asyncio.Event()
        self._process = subprocess.Popen(["tail", "-f", "/dev/null"])
        self._attachment = service.attached(uuid, self)
        self._attachment.__enter__()
        machine.add_client(Path(service.pipe_directory(uuid)).name.removeprefix("mps-"), self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """As a worker's handle does, whose version notices the end a moment later."""
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if not self.ended.is_set():
            self.ended.set()
            self._attachment.__exit__(None, None, None)


# Which daemons


@as_root
def test_auto_is_for_shares_and_on_for_every_gpu_that_is_used(machine: Machine) -> None:
    async def life() -> None:
        auto, on = service_of(machine, "auto"), service_of(machine, "on")
        await auto.start([CPU, A, WHOLE])
        assert auto.pipe_directory("GPU-a") == str(machine.pipes("GPU-a"))
        assert auto.why_not("GPU-a") == ""
        assert auto.pipe_directory("GPU-b") == ""
        assert auto.why_not("GPU-b") == "nothing asked for it"
        await on.start([CPU, A, WHOLE])
        assert on.pipe_directory("GPU-b") == str(machine.pipes("GPU-b"))
        await auto.stop()
        assert len(machine.daemons()) == 2  # the other server uses both
        await on.stop()

    run(life)
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


def test_off_starts_nothing_and_asks_nothing(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "off")
        await service.start([A])
        assert service.pipe_directory("GPU-a") == ""
        assert service.why_not("GPU-a") == "--mps off"
        assert service.before_kill("GPU-a") is None
        with pytest.raises(MpsFailed, match="no MPS daemon serves GPU-a: --mps off"):
            await service.clients("GPU-a")
        await service.well("GPU-a")
        await service.stop()

    run(life)
    assert machine.calls() == []


def test_models_that_come_later_get_their_daemon_then(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "auto")
        await service.start([CPU])
        assert machine.daemons() == []
        await service.start([A])
        await service.start([A, B])
        assert len(machine.daemons()) == 2
        await service.stop()

    run(life)
    assert machine.daemons() == []


def test_without_nvidias_programs_on_is_an_error_and_auto_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemons = MpsDaemons(RunDirectory(tmp_path), NvidiaPrograms("no-smi", "no-control"))

    async def life() -> None:
        with pytest.raises(MpsFailed, match="no no-smi on this machine"):
            await MpsService(daemons, "on").start([CPU])
        auto = MpsService(daemons, "auto")
        await auto.start([CPU])
        assert "no MPS" not in caplog.text
        await auto.start([A])
        assert "no MPS: no no-smi on this machine" in caplog.text
        assert "no no-smi on this machine" in auto.why_not("GPU-a")

    run(life)


@pytest.mark.parametrize("device", ["MIG-1", "GPU-unknown"])
def test_a_slice_or_an_unknown_gpu_is_left_alone(machine: Machine, device: str) -> None:
    async def life() -> None:
        service = service_of(machine, "auto")
        await service.start([Partition(device=device, share_pct=10), A])
        assert "MIG" in service.why_not(device)
        assert service.pipe_directory("GPU-a")
        await service.stop()
        with pytest.raises(MpsFailed, match="MIG"):
            await service_of(machine, "on").start([Partition(device=device)])

    run(life)


@as_root
def test_a_failure_in_the_middle_undoes_what_was_started(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A])
        machine.set("refuse")
        with pytest.raises(MpsFailed, match="the MPS daemon of GPU-b did not start"):
            await service.start([B])
        await service.stop()

    run(life)
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


# Clients


def test_clients_are_those_that_the_daemon_lists(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A])
        assert await service.clients("GPU-a") == ()
        machine.start_server("GPU-a")
        worker = ProcessWorker(machine, service, "GPU-a")
        assert await service.clients("GPU-a") == (worker.pid,)
        worker.kill()
        await worker.ended.wait()
        assert await service.clients("GPU-a") == ()
        await service.stop()

    run(life)


def test_a_worker_that_the_daemon_does_not_know_is_refused(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    share = Partition("GPU-a", share_pct=50, means="mps", units=132)

    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([share])
        machine.start_server("GPU-a")
        worker = ProcessWorker(machine, service, "GPU-a")
        await service.confirm(share, worker.pid, Obtained(sm_count=132))
        await service.confirm(CPU, 1, Obtained())
        with pytest.raises(LoadFailed, match=r"its share was not applied: the MPS daemon of GPU-a does not list it"):
            await service.confirm(share, 1, Obtained(sm_count=132))
        assert "among its clients" not in caplog.text
        await service.confirm(share, 1, Obtained(sm_count=66))  # a daemon elsewhere has other process ids
        assert "but it sees 66 of 132 SMs" in caplog.text
        worker.kill()
        await worker.ended.wait()
        await service.stop()

    run(life)


def test_a_client_is_terminated_before_it_is_killed(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A])
        server = machine.start_server("GPU-a")
        worker = ProcessWorker(machine, service, "GPU-a")
        part = service.before_kill("GPU-a")
        assert part is not None
        await part(worker.pid)
        assert f"control mps-GPU-a terminate_client {server} {worker.pid}" in machine.calls()
        await part(worker.pid)  # is no client any more
        assert sum("terminate_client" in call for call in machine.calls()) == 1
        worker.kill()
        await worker.ended.wait()
        await service.stop()

    run(life)


def test_a_daemon_that_cannot_part_does_not_keep_a_worker_alive(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> None:
        service = service_of(machine, "on", deadline_s=0.3)
        await service.start([A])
        part = service.before_kill("GPU-a")
        assert part is not None
        machine.set("hang")
        await part(1)
        machine.set("hang", on=False)
        assert "could not part from worker 1" in caplog.text
        await service.stop()

    run(life)


# Faults


def test_a_fault_ends_all_workers_of_the_gpu_and_no_other(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A, B])
        for uuid in ("GPU-a", "GPU-b"):
            machine.start_server(uuid)
        ill = [ProcessWorker(machine, service, "GPU-a") for _ in range(2)]
        other = ProcessWorker(machine, service, "GPU-b")
        machine.make_faulty("GPU-a")
        for worker in ill:
            await worker.ended.wait()
        await service.well("GPU-a")
        assert not other.ended.is_set()
        again = ProcessWorker(machine, service, "GPU-a")
        await asyncio.sleep(0)
        assert await service.clients("GPU-a") == (again.pid,)
        assert not again.ended.is_set()
        for worker in (again, other):
            worker.kill()
            await worker.ended.wait()
        await service.stop()

    run(life)
    assert "MPS of GPU-a has failed (its server is in state FAULT); its 2 workers start again" in caplog.text
    assert "terminate_client" not in "".join(machine.calls())
    assert sum(call.startswith("daemon") for call in machine.calls()) == 2


def test_a_fault_of_a_single_daemon_ends_the_workers_of_all_gpus(machine: Machine) -> None:
    machine.script("start", "--single")

    async def life() -> None:
        service = service_of(machine, "on", heal_s=0.5)
        await service.start([A, B])
        assert service.pipe_directory("GPU-a") == service.pipe_directory("GPU-b") == str(machine.pipes("all"))
        machine.start_server("all")
        workers = [ProcessWorker(machine, service, uuid) for uuid in ("GPU-a", "GPU-b")]
        machine.set("stays-faulty")
        machine.make_faulty("all")
        for worker in workers:
            await worker.ended.wait()
        await service.well("GPU-b")
        await service.stop()

    before = machine.daemons()
    run(life)
    (restarted,) = machine.daemons()  # which a person started, and so it stays
    assert restarted not in before
    assert machine.calls().count("daemon GPU-a,GPU-b mps-all share=") == 2


def test_a_fault_that_only_the_log_tells(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A])
        worker = ProcessWorker(machine, service, "GPU-a")
        with (machine.run_dir / "log-GPU-a" / "server.log").open("a") as file:
            file.write("[2026-01-01 00:00:00.000 Server 7] a fatal error on device 0\n")
        await worker.ended.wait()
        await service.well("GPU-a")
        await service.stop()

    run(life)
    assert "a fatal error on device 0" in caplog.text


def test_a_server_that_does_not_recover_has_its_daemon_restarted(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "on", heal_s=0.5)
        await service.start([A])
        machine.start_server("GPU-a")
        before = set(machine.daemons())
        worker = ProcessWorker(machine, service, "GPU-a")
        machine.set("stays-faulty")
        machine.make_faulty("GPU-a")
        await worker.ended.wait()
        await service.well("GPU-a")
        assert len(machine.daemons()) == 1
        assert not before & set(machine.daemons())
        await service.stop()
        assert machine.daemons() == []

    run(life)


def test_a_daemon_that_dies_is_started_again(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    async def life() -> None:
        service = service_of(machine, "on")
        await service.start([A])
        worker = ProcessWorker(machine, service, "GPU-a")
        (before,) = machine.daemons()
        end(before)
        await worker.ended.wait()
        await service.well("GPU-a")
        assert machine.daemons() not in ([], [before])
        await service.stop()

    run(life)
    assert "MPS of GPU-a is well again" in caplog.text
    assert machine.daemons() == []


def test_a_daemon_that_cannot_be_started_again_is_given_up(machine: Machine) -> None:
    async def life() -> None:
        service = service_of(machine, "auto")
        await service.start([A])
        worker = ProcessWorker(machine, service, "GPU-a")
        machine.set("refuse")
        end(machine.daemons()[0])
        await worker.ended.wait()
        await service.well("GPU-a")
        assert service.pipe_directory("GPU-a") == ""
        assert "no licence" in service.why_not("GPU-a")
        await service.stop()

    run(life)


def test_workers_of_a_daemon_that_hangs_go_on(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    async def life() -> None:
        service = service_of(machine, "on", deadline_s=0.6)
        await service.start([A])
        worker = ProcessWorker(machine, service, "GPU-a")
        async with machine.heard() as heard:
            machine.set("hang")
            for _ in range(3):
                assert await heard.readline() == b"get_server_list\n"
            machine.set("hang", on=False)
        assert not worker.ended.is_set()
        worker.kill()
        await worker.ended.wait()
        await service.stop()

    run(life)
    assert caplog.text.count("its workers go on") == 1
    assert machine.daemons() == []
