"""GPUs as devices to profile, by a stand-in for the driver: shares, splits, gauges; and the processor's gauge."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.devices import gpm
from efserve.devices.gpu import gpu_slug
from efserve.devices.nvml import Nvml, connect
from efserve.errors import UsageError
from efserve.profiler.gauges import CpuGauge, Look, throttle_text
from efserve.profiler.gpu import GRID_PCT, GpuDevice, GpuGauge, gpu_device
from efserve.profiler.options import ProfileConfig
from efserve.profiler.shares import Share
from fake_nvml import LIBRARY_NOT_FOUND, FakeNvml, FakeNvmlError, h200, mig_slice, process

CORES = (0, 1, 2, 3, 4)


class FakeGpm(FakeNvml):
    """NVML with performance monitoring: each sample is the one before plus a step; metrics are differences of samples.

    The structures have the fields of nvidia-ml-py's.
    """

    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRIC_DRAM_BW_UTIL = 10

    def __init__(self, *gpus: Any, supported: int = 1, failing_metric: int = 0) -> None:
        super().__init__(*gpus)
        self.taken = 0
        self.held: list[int] = []
        self._supported = supported
        self._failing_metric = failing_metric

    def c_nvmlGpmMetricsGet_t(self) -> SimpleNamespace:
        metrics = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(333)]
        return SimpleNamespace(version=0, numMetrics=0, sample1=None, sample2=None, metrics=metrics)

    def nvmlGpmQueryDeviceSupport(self, gpu: object) -> SimpleNamespace:
        return SimpleNamespace(version=1, isSupportedDevice=self._supported)

    def nvmlGpmSampleAlloc(self) -> SimpleNamespace:
        self.taken += 1
        self.held.append(self.taken)
        return SimpleNamespace(number=self.taken)

    def nvmlGpmSampleGet(self, gpu: object, sample: SimpleNamespace) -> SimpleNamespace:
        return sample

    def nvmlGpmSampleFree(self, sample: SimpleNamespace) -> None:
        self.held.remove(sample.number)

    def nvmlGpmMetricsGet(self, request: SimpleNamespace) -> SimpleNamespace:
        assert request.version == self.NVML_GPM_METRICS_GET_VERSION
        steps = request.sample2.number - request.sample1.number
        for metric in request.metrics[: request.numMetrics]:
            metric.value = 10.0 * metric.metricId * steps
            metric.nvmlReturn = 3 if metric.metricId == self._failing_metric else 0
        return request


def device(library: Nvml | None = None, cores: tuple[int, ...] = CORES, wanted: str = "gpu0") -> GpuDevice:
    return gpu_device(wanted, cores, library or connect(FakeNvml(h200("GPU-aaaa"))))


def pcts(shares: Sequence[Share]) -> list[float]:
    return [share.pct for share in shares]


def test_a_gpu_is_found_by_name_and_uuid() -> None:
    found = device()
    assert (found.facts.slug, found.facts.gpu, found.facts.driver) == ("nvidia-h200", "NVIDIA H200", "570.86.15")
    assert (found.uuid, found.name, found.sm_count) == ("GPU-aaaa", "gpu0", 132)
    assert device(wanted="GPU-aaaa").uuid == device(wanted="0").uuid == device(wanted="gpu-aaaa").uuid == "GPU-aaaa"
    with pytest.raises(UsageError, match="GPU 'gpu7' fits none of this machine's GPUs"):
        device(wanted="gpu7")
    without = connect(FakeNvml(init=LIBRARY_NOT_FOUND))
    with pytest.raises(UsageError, match="--device gpu0: no NVIDIA driver; --device cpu runs here"):
        device(without)


def test_a_slice_is_a_device_of_its_own() -> None:
    cut = h200("GPU-a", nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=7)
    cut["slices"] = {1: mig_slice("MIG-one", "NVIDIA H200 MIG 3g.71gb", 60, 71 << 30)}
    found = device(connect(FakeNvml(cut)), wanted="gpu0:1")
    assert (found.uuid, found.name, found.sm_count) == ("MIG-one", "gpu0:1", 60)
    assert found.facts.slug == gpu_slug("NVIDIA H200 MIG 3g.71gb") == "nvidia-h200-mig-3g-71gb"


def test_shares_of_a_gpu() -> None:
    gpu = device()
    assert pcts(gpu.shares(ProfileConfig())) == [100]
    assert pcts(gpu.shares(ProfileConfig(grid=True))) == [*GRID_PCT]
    assert pcts(gpu.shares(ProfileConfig(grid=True, shares=(50, 25, 50)))) == [25, 50]
    with pytest.raises(UsageError, match="--cores: a share of gpu0 is in percent"):
        gpu.shares(ProfileConfig(cores=(1,)))


def test_a_share_is_held_by_mps_or_else_by_a_green_context() -> None:
    config = ProfileConfig(shares=(50, 100))
    half, whole = (share.partition for share in device().shares(config))
    assert (half.device, half.share_pct, half.units, half.means) == ("GPU-aaaa", 50, 132, "green")
    assert whole.means == ""
    with_daemon = device().with_mps("/run/mps-GPU-aaaa")
    half, whole = (share.partition for share in with_daemon.shares(config))
    assert half.means == whole.means == "mps"
    assert half.pipe_directory == "/run/mps-GPU-aaaa"
    assert (device().facts.means, with_daemon.facts.means) == ("whole device", "mps")
    assert device().with_mps("").facts.means == "green"


def test_workers_keep_off_the_core_of_the_profiler() -> None:
    (whole,) = device().shares(ProfileConfig())
    assert (whole.partition.cores, whole.partition.threads) == ((1, 2, 3, 4), 4)
    (alone,) = device(cores=(0,)).shares(ProfileConfig())
    assert (alone.partition.cores, alone.partition.threads) == ((0,), 1)


@given(st.integers(1, 64), st.booleans(), st.lists(st.floats(1, 99), max_size=3))
def test_splits_are_complementary(cores: int, grid: bool, shares: list[float]) -> None:
    config = ProfileConfig(grid=grid, shares=tuple(shares))
    for one, other in device(cores=tuple(range(cores))).splits(config):
        assert one.pct + other.pct == pytest.approx(100)
        ours, theirs = set(one.partition.cores), set(other.partition.cores)
        assert ours
        assert theirs
        assert not ours & theirs or cores < 3
        assert 0 not in ours | theirs or cores < 3


def test_a_split_leaves_something() -> None:
    with pytest.raises(UsageError, match="leaves none for the other model"):
        device().splits(ProfileConfig(shares=(100,)))


def test_a_gauge_tells_what_the_driver_does() -> None:
    busy = h200("GPU-a", nvmlDeviceGetCurrentClocksEventReasons=0x004 | 0x001)
    busy["nvmlDeviceGetMPSComputeRunningProcesses_v3"] = [process(7, 3_000_000)]
    look = GpuGauge("GPU-a", connect(FakeNvml(busy))).look(7)
    assert look == Look(1980, frozenset({"power cap"}), 37, None, 12, 3_000_000)
    assert throttle_text([look]) == "power cap"
    other = GpuGauge("GPU-a", connect(FakeNvml(busy))).look(8)
    assert other.memory_bytes is None


def test_a_gpu_that_is_lost_tells_nothing() -> None:
    assert GpuGauge("GPU-gone", connect(FakeNvml(h200("GPU-a")))).look(1) == Look()


def test_utilisations_are_those_since_the_look_before() -> None:
    library = FakeGpm(h200("GPU-a"))
    gauge = GpuGauge("GPU-a", connect(library))
    looks = [gauge.look(1) for _ in range(3)]
    assert [(look.sm_util_pct, look.dram_util_pct) for look in looks] == [(None, 12), (20.0, 100.0), (20.0, 100.0)]
    assert library.held == [3]  # only the last sample is kept


def test_what_a_gpu_does_not_count_is_none() -> None:
    unsupported = connect(FakeGpm(h200("GPU-a"), supported=0))
    assert gpm.take_sample(unsupported, "GPU-a") is None
    partly = connect(FakeGpm(h200("GPU-a"), failing_metric=10))
    first, second = gpm.take_sample(partly, "GPU-a"), gpm.take_sample(partly, "GPU-a")
    assert gpm.activity(partly, first, second) == gpm.Activity(20.0, None)
    assert gpm.activity(partly, None, second) == gpm.Activity()
    refusing = FakeNvml(h200("GPU-a", nvmlDeviceGetClockInfo=FakeNvmlError(3, "Not Supported")))
    assert gpm.take_sample(connect(refusing), "GPU-a") is None


# The processor's gauge


def sysfs(root: Path, clocks_khz: dict[int, int], counts: dict[int, int]) -> None:
    for core, clock in clocks_khz.items():
        path = root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{clock}\n")
    for core, count in counts.items():
        path = root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{count}\n")


def test_clock_and_throttling_of_cores(tmp_path: Path) -> None:
    sysfs(tmp_path, {0: 2_000_000, 1: 3_000_000, 2: 9_000_000}, {0: 5, 1: 5, 2: 0})
    gauge = CpuGauge((0, 1), tmp_path)
    assert gauge.look(1) == Look(clock_mhz=2500, throttle=frozenset())
    sysfs(tmp_path, {}, {1: 6, 2: 9})
    assert gauge.look(1).throttle == frozenset({"thermal"})
    assert gauge.look(1).throttle == frozenset()


def test_a_machine_that_tells_nothing_of_its_cores(tmp_path: Path) -> None:
    assert CpuGauge((0, 1), tmp_path).look(1) == Look()


def test_throttling_in_a_word() -> None:
    assert throttle_text([Look(), Look()]) == ""
    assert throttle_text([Look(), Look(throttle=frozenset())]) == "none"
    assert throttle_text([Look(throttle=frozenset({"b"})), Look(throttle=frozenset({"a", "b"}))]) == "a+b"
