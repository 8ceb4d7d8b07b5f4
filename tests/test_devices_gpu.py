"""GPUs as a driver tells them, by a stand-in for pynvml; the last tests ask the real one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from efserve.devices.gpu import (
    Gpu,
    GpuProcess,
    GpuReading,
    MigSlice,
    cuda_devices,
    find_gpu,
    gpu_facts,
    gpu_reading,
    gpus,
)
from efserve.devices.nvml import NO_DRIVER, connect, nvml
from efserve.errors import UsageError
from efserve.inspection.devices import Devices
from fake_nvml import (
    DRIVER_NOT_LOADED,
    LIBRARY_NOT_FOUND,
    LOST,
    Answers,
    FakeNvml,
    FakeNvmlError,
    h200,
    mig_slice,
    process,
)

SLICED = h200(
    "GPU-aaaa",
    nvmlDeviceGetMigMode=[1, 1],
    nvmlDeviceGetNumGpuCores=FakeNvmlError(3, "Not Supported"),
    nvmlDeviceGetMaxMigDeviceCount=7,
    slices={
        0: mig_slice("MIG-one", "NVIDIA H200 MIG 3g.71gb", 60, 71 << 30),
        2: mig_slice("MIG-two", "NVIDIA H200 MIG 1g.18gb", 16, 18 << 30),
    },
)


def found(*gpus_: Answers | FakeNvmlError) -> tuple[Gpu, ...]:
    return gpu_facts(connect(FakeNvml(*gpus_))).gpus


def test_a_gpu_is_told_whole() -> None:
    facts = gpu_facts(connect(FakeNvml(h200())))
    assert (facts.problem, facts.driver_version, facts.cuda_version) == ("", "570.86.15", "12.8")
    (gpu,) = facts.gpus
    assert (gpu.index, gpu.name, gpu.sm_count) == (0, "NVIDIA H200", 132)
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes) == (141 * 10**9, 10**9)
    assert (gpu.compute_capability, gpu.compute_mode) == ((9, 0), "DEFAULT")
    assert (gpu.mig_enabled, gpu.mig_slices, gpu.pci_bus_id) == (False, (), "00000000:19:00.0")
    assert gpu.reading == GpuReading(1980, 1980, 3201, 3201, (), 37, 12, 10**9, 41, 118.25, 700.0)
    assert not gpu.reading.throttled


def test_what_a_gpu_does_not_tell_is_none() -> None:
    (gpu,) = found({"nvmlDeviceGetUUID": "GPU-x"})
    assert gpu == Gpu(
        0, "GPU-x", "unknown GPU", None, None, None, None, None, None, (), None, GpuReading(), processes=()
    )


def test_sms_of_an_architecture_that_is_not_known_are_not_guessed() -> None:
    (gpu,) = found(h200(nvmlDeviceGetCudaComputeCapability=(99, 0)))
    assert gpu.sm_count is None


@pytest.mark.parametrize(
    ("bits", "words", "throttled"),
    [
        (0x1, ("idle",), False),
        (0x2, ("application clocks",), False),
        (0x4 | 0x20, ("power cap", "thermal slowdown by software"), True),
        (0x80, ("power brake",), True),
    ],
)
@pytest.mark.parametrize("function", ["Event", "Throttle"])
def test_reasons_of_the_clocks(bits: int, words: tuple[str, ...], throttled: bool, function: str) -> None:
    told = h200()
    del told["nvmlDeviceGetCurrentClocksEventReasons"]
    told[f"nvmlDeviceGetCurrentClocks{function}Reasons"] = bits
    reading = gpu_reading("GPU-5f1b4c5e-2d9a-7c11-9a55-0a3f7e1c2b44", connect(FakeNvml(told)))
    assert (reading.clock_reasons, reading.throttled) == (words, throttled)


def test_a_gpu_that_is_not_there_reads_as_nothing() -> None:
    assert gpu_reading("GPU-other", connect(FakeNvml(h200()))) == GpuReading()


def test_processes_are_told_once_with_all_their_kinds() -> None:
    fake = FakeNvml(
        h200(
            nvmlDeviceGetComputeRunningProcesses_v3=[process(20, 30 << 20), process(10, 4 << 30), process(30)],
            nvmlDeviceGetMPSComputeRunningProcesses_v3=[process(10)],
        ),
        names={10: "/usr/bin/python3", 20: "/usr/bin/nvidia-cuda-mps-server"},
    )
    (gpu,) = gpu_facts(connect(fake)).gpus
    client, server, hidden = gpu.processes
    assert (client.pid, client.kinds, client.memory_bytes, client.name) == (10, ("compute", "mps"), 4 << 30, "python3")
    assert (hidden.pid, hidden.memory_bytes, hidden.name) == (30, None, "")
    assert (gpu.mps_clients, gpu.mps_servers) == ((client,), (server,))


def test_slices_of_mig_are_devices_of_their_own() -> None:
    (gpu,) = found(SLICED)
    assert (gpu.mig_enabled, gpu.sm_count) == (True, None)
    first, second = gpu.mig_slices
    assert first == MigSlice("MIG-one", "NVIDIA H200 MIG 3g.71gb", 0, 60, 71 << 30, 0)
    assert (second.index, second.sm_count) == (2, 16)
    (whole,) = found(h200())
    assert cuda_devices((gpu, whole)) == (first, second, whole)


def test_a_lost_gpu_keeps_the_others() -> None:
    facts = gpu_facts(connect(FakeNvml(LOST, h200())))
    assert [gpu.index for gpu in facts.gpus] == [1]
    assert facts.unreachable == (0,)


@pytest.mark.parametrize(
    ("error", "problem"),
    [(LIBRARY_NOT_FOUND, NO_DRIVER), (DRIVER_NOT_LOADED, "the NVIDIA driver does not answer: Driver Not Loaded")],
)
def test_without_a_driver_there_are_no_gpus(error: FakeNvmlError, problem: str) -> None:
    facts = gpu_facts(connect(FakeNvml(init=error)))
    assert (facts.problem, facts.gpus, facts.driver_version) == (problem, (), None)
    assert gpu_reading("GPU-x", connect(FakeNvml(init=error))) == GpuReading()


@pytest.mark.parametrize(
    ("wanted", "uuid"),
    [
        ("0", "GPU-aaaa"),
        ("0:2", "MIG-two"),
        ("1", "GPU-bbbb"),
        ("gpu1", "GPU-bbbb"),
        ("GPU0:2", "MIG-two"),
        ("GPU-bbbb", "GPU-bbbb"),
        ("gpu-a", "GPU-aaaa"),
        ("mig-o", "MIG-one"),
        ("L4", "GPU-bbbb"),
        ("nvidia l4", "GPU-bbbb"),
        ("H200 MIG 1g", "MIG-two"),
    ],
)
def test_a_gpu_is_found_by(wanted: str, uuid: str) -> None:
    assert find_gpu(wanted, found(SLICED, h200("GPU-bbbb", nvmlDeviceGetName="NVIDIA L4"))).uuid == uuid


@pytest.mark.parametrize(("wanted", "number"), [("2", "none"), ("", "none"), ("GPU-", "2"), ("h200", "2")])
def test_a_gpu_that_is_not_one_is_refused(wanted: str, number: str) -> None:
    with pytest.raises(UsageError, match=f"GPU '{wanted}' fits {number} of this machine's GPUs") as caught:
        find_gpu(wanted, found(h200("GPU-a1"), h200("GPU-b1")))
    assert "1 (NVIDIA H200, GPU-b1)" in str(caught.value)


def test_a_machine_without_a_driver_is_told_at_once_and_without_a_warning() -> None:
    """With the real library, in a process where none can be found."""
    script = "from efserve.devices.gpu import gpu_facts; print(gpu_facts().problem)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ,
    )
    assert done.stderr == ""
    if not gpus():
        assert done.stdout.strip() == nvml().problem


def test_pynvml_itself_on_a_stand_in_for_the_driver(driver_in_c: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "efserve", "devices", "--json"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver_in_c)},
    )
    facts = msgspec.json.decode(done.stdout, type=Devices).gpu
    assert (facts.problem, facts.driver_version, facts.cuda_version) == ("", "570.86.15", "12.8")
    (gpu,) = facts.gpus
    assert (gpu.uuid, gpu.name, gpu.sm_count, gpu.compute_mode) == ("GPU-in-c", "GPU in C", 132, "EXCLUSIVE_PROCESS")
    assert gpu.mig_slices == (MigSlice("MIG-in-c", "Slice in C", 2, 16, 1000, 100),)
    assert gpu.processes == (GpuProcess(4242, ("compute", "mps"), 5000, "client"),)
    assert gpu.pci_bus_id is None
    assert gpu.reading.clock_reasons == ("power cap", "thermal slowdown by software")
    reading = replace(gpu.reading, clock_reasons=())
    assert reading == GpuReading(1500, 1980, 3201, 3201, (), 37, 12, 100, 41, None, None)


def test_a_reading_by_pynvml_itself(driver_in_c: Path) -> None:
    script = (
        "from efserve.devices.gpu import gpu_reading as r; print(r('GPU-in-c').sm_clock_mhz, r('GPU-x').sm_clock_mhz)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver_in_c)},
    )
    assert done.stdout == "1500 None\n"


@pytest.mark.gpu
def test_this_machines_gpus() -> None:
    if nvml().problem:
        pytest.skip(nvml().problem)
    for gpu in gpus():
        assert gpu.uuid.startswith("GPU-")
        assert find_gpu(gpu.uuid, gpus()) == find_gpu(str(gpu.index), gpus())
        assert gpu_reading(gpu.uuid).memory_used_bytes is not None
        for device in cuda_devices((gpu,)):
            assert device.sm_count
            assert device.memory_total_bytes
