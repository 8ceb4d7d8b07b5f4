"""Daemons of MPS on the machine of `mps_machine.py`, and the compute modes there."""

import asyncio
import os
from dataclasses import replace

import pytest

from efserve.partitions.compute_mode import ListedGpu, list_gpus
from efserve.partitions.mps import MpsDaemons, Started
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
from mps_machine import Machine

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


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


def replace_deadline(daemons: MpsDaemons, deadline_s: float) -> MpsDaemons:
    return MpsDaemons(daemons.directory, replace(daemons.programs, deadline_s=deadline_s))
