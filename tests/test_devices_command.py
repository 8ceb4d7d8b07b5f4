"""`efserve devices`: tables that fit a narrow terminal, and JSON."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from efserve.commands.devices import show
from efserve.devices.cgroup import CgroupLimits
from efserve.devices.cpu import host_cpu
from efserve.devices.gpu import GpuFacts, gpu_facts
from efserve.devices.nvml import NO_DRIVER, connect
from efserve.inspection.devices import Devices
from fake_nvml import LIBRARY_NOT_FOUND, LOST, FakeNvml, h200, mig_slice, process


def printed(gpu: GpuFacts, width: int = 60) -> str:
    cpu = replace(host_cpu(), cores=(0, 1, 2, 3, 6), usable_cores=2, cgroup=CgroupLimits((2,), 2.5, None, 4 << 30))
    text = StringIO()
    show(Devices(cpu, gpu), Console(file=text, width=width))
    assert max(map(len, text.getvalue().splitlines())) <= width
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 120])
def test_gpus_are_shown_with_slices_and_processes(width: int) -> None:
    sliced = h200(
        nvmlDeviceGetMigMode=[1, 1],
        nvmlDeviceGetMaxMigDeviceCount=7,
        slices={1: mig_slice("MIG-5f1b4c5e", "NVIDIA H200 MIG 1g.18gb", 16, 18 << 30)},
    )
    busy = h200(
        "GPU-b",
        nvmlDeviceGetCurrentClocksEventReasons=0x24,
        nvmlDeviceGetComputeRunningProcesses_v3=[process(4242, 3 << 30)],
        nvmlDeviceGetMPSComputeRunningProcesses_v3=[process(4242, 3 << 30)],
    )
    text = printed(gpu_facts(connect(FakeNvml(sliced, busy, LOST, {"nvmlDeviceGetUUID": "GPU-shy"}))), width)
    for words in ("GPU 0", "0:1", "18 GiB", "132, compute capability 9.0", "compute+mps", "3 GiB", "power cap"):
        assert words in text
    assert "GPU 2: cannot be reached" in text
    assert "unknown of unknown MHz" in text


def test_limits_of_the_processor_are_shown() -> None:
    text = printed(gpu_facts(connect(FakeNvml(init=LIBRARY_NOT_FOUND))))
    for words in ("(0-3,6)", "2.5 cores; 2 usable at once", "memory limit    4 GiB", f"GPUs: {NO_DRIVER}"):
        assert words in text


def test_this_machine_in_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "efserve", "devices", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    told = json.loads(done.stdout)
    assert told["cpu"]["cores"] == sorted(os.sched_getaffinity(0))
    assert set(told["gpu"]) == {"problem", "driver_version", "cuda_version", "gpus", "unreachable"}
