"""Partitions of GPUs without a GPU: environments, arithmetic, and the driver's calls against a stand-in library.

The stand-in (tests/cuda_stand_in.c) keeps to the signatures of CUDA 13.0's cuda.h; what a driver does, it cannot say.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.errors import LoadFailed
from efserve.partition import CPU, Obtained, Partition
from efserve.partitions import entry, gpu

MPS = Partition("GPU-a", 2, (), 40, 2**30, "mps", "/run/mps-a", 132)
GREEN = Partition("GPU-a", 1, (), 50, means="green", units=132)


class FakeDriver:
    """A GPU of 132 SMs whose green contexts have multiples of 8."""

    def __init__(self, visible_sms: int = 132) -> None:
        self.visible_sms = visible_sms
        self.context_sms = 0
        self.is_held = False

    def sm_count(self) -> int:
        return self.visible_sms

    def context_sm_count(self) -> int:
        return self.context_sms

    def hold_context(self) -> None:
        self.is_held = True

    def green_granularity(self) -> tuple[int, int]:
        return 8, 8

    def make_green_context(self, sm_count: int) -> int:
        self.context_sms = sm_count
        return sm_count


def test_a_client_of_mps_gets_its_share_by_environment() -> None:
    inherited = {"PATH": "/bin", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "7", "CUDA_VISIBLE_DEVICES": ""}
    assert gpu.environment(MPS, inherited) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "GPU-a",
        "CUDA_MPS_PIPE_DIRECTORY": "/run/mps-a",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "40",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1024M",
    }
    whole = Partition("GPU-a", means="mps", pipe_directory="/run/mps-a")
    assert gpu.environment(whole, inherited).keys() == {"PATH", "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY"}


def test_no_share_is_inherited_without_mps() -> None:
    inherited = {"CUDA_MPS_PIPE_DIRECTORY": "/x", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1M"}
    assert gpu.environment(GREEN, inherited) == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    found = entry.environment(GREEN)
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert found["OMP_NUM_THREADS"] == "1"
    untouched = entry.environment(Partition(CPU))
    assert untouched.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


@given(st.integers(8, 200), st.floats(0.1, 100), st.sampled_from([(2, 2), (4, 2), (8, 8), (1, 1)]))
def test_a_green_context_has_sms_that_can_be_had(total: int, pct: float, granularity: tuple[int, int]) -> None:
    smallest, step = granularity
    count = gpu.green_sm_count(total, pct, smallest, step)
    assert smallest <= count <= total
    assert (count - smallest) % step == 0
    if smallest <= total * pct / 100 <= total - step:
        assert abs(count - total * pct / 100) <= step / 2


def test_a_green_context_is_entered_and_read_back() -> None:
    driver = FakeDriver()
    gpu.enter(GREEN, driver)
    got = gpu.obtained(GREEN, Obtained((0, 1), threads=3), driver)
    assert got == Obtained((0, 1), 64, 3)
    entry.check(GREEN, got)


def test_an_engine_that_leaves_its_green_context_is_noticed() -> None:
    driver = FakeDriver()
    gpu.enter(GREEN, driver)
    driver.context_sms = 132  # it has made the primary context current
    with pytest.raises(LoadFailed, match="50 % of the 132 SMs of GPU-a by its green context, but sees 132"):
        entry.check(GREEN, gpu.obtained(GREEN, Obtained(), driver))


def test_a_client_that_runs_without_mps_is_noticed() -> None:
    applied, missed = FakeDriver(visible_sms=52), FakeDriver(visible_sms=132)
    entry.check(MPS, gpu.obtained(MPS, Obtained(), applied))
    assert applied.is_held
    with pytest.raises(LoadFailed, match="40 % of the 132 SMs of GPU-a by MPS, but sees 132: the share was"):
        entry.check(MPS, gpu.obtained(MPS, Obtained(), missed))


def test_what_cannot_be_compared_is_not() -> None:
    entry.check(Partition("GPU-a", share_pct=40, means="mps"), Obtained(sm_count=132))  # the size is not known
    entry.check(Partition("GPU-a", units=132), Obtained(sm_count=132))
    entry.check(Partition(CPU), Obtained(cores=(0, 1)))


def test_without_a_driver_a_gpu_is_one_sentence() -> None:
    script = (
        "from efserve.partitions.cuda_driver import CudaDriver\n"
        "assert CudaDriver.open('libcuda-that-is-not-there.so.1') is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the driver's functions, compiled; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the stand-in for the CUDA driver")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    source = Path(__file__).with_name("cuda_stand_in.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)], check=True)
    return library


def told(library: Path, code: str, **environment: str) -> str:
    """What a process says that has opened the stand-in as `d`; its errors as their text."""
    script = (
        "from efserve.errors import LoadFailed\n"
        "from efserve.partitions.cuda_driver import CudaDriver\n"
        "try:\n"
        f"    d = CudaDriver.open({str(library)!r})\n"
        f"    print({code})\n"
        "except LoadFailed as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_driver_is_asked_as_its_header_says(stand_in: Path) -> None:
    asked = told(stand_in, "d.sm_count(), d.context_sm_count(), d.green_granularity(), d.hold_context()")
    assert asked == "132 0 (8, 8) None"
    assert told(stand_in, "d.make_green_context(60), d.context_sm_count()") == "64 64"


def test_what_the_driver_refuses_is_one_sentence(stand_in: Path) -> None:
    assert told(stand_in, "d.make_green_context(60)", STAND_IN_FAILS="cuGreenCtxCreate") == (
        "the CUDA driver refuses cuGreenCtxCreate: made to fail (error 801)"
    )
    assert told(stand_in, "d.sm_count()", STAND_IN_FAILS="cuInit").startswith("the CUDA driver refuses cuInit")
    assert "cannot be split" in told(stand_in, "d.make_green_context(140)")
