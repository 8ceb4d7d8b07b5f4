"""What every test needs: Ctrl-C as a terminal gives it, no verdict by the clock, a small heap. A driver in C; MPS.

A shell starts background jobs with SIGINT ignored, and every process below inherits that. Hypothesis fails what takes
longer than it finds usual, which on a busy machine anything may. The modules of all tests and libraries are hundreds of
thousands of objects, which each full garbage collection of each test would visit.
"""

import gc
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mps_machine import Machine, machine_in

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What has been imported by now stays."""
    gc.freeze()


@pytest.fixture(scope="session")
def driver_in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stand-in for the driver's library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("stand_in_nvml.c")
    command = [compiler, "-shared", "-fPIC", "-w", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Two GPUs under MPS, one of which has a compute mode of its own."""
    with machine_in(tmp_path) as machine:
        yield machine
