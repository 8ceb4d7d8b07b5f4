"""A partition of a GPU made real: by environment for MPS, which reads it when the process makes its CUDA context, or by
a green context made from within. The driver itself is talked to in `cuda_driver.py`.

Never run on a GPU by this project.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from efserve.errors import LoadFailed
from efserve.partition import Obtained, Partition

_MPS_CLIENT_VARIABLES = (
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
)


class Driver(Protocol):
    """What is needed of the CUDA driver, in a process that sees one GPU."""

    def sm_count(self) -> int:
        """SMs that this process may use, as device attribute: under MPS those of its share."""
        ...

    def context_sm_count(self) -> int:
        """SMs of the current thread's context; 0: it has none."""
        ...

    def hold_context(self) -> None:
        """Have the device's primary context exist for as long as the process, by which it is a client of MPS."""
        ...

    def green_granularity(self) -> tuple[int, int]:
        """Fewest SMs of a green context, and the step from there."""
        ...

    def make_green_context(self, sm_count: int) -> int:
        """Make a green context with at least so many SMs the current thread's; answers how many it got."""
        ...


def environment(partition: Partition, inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` changed so that the process sees this GPU alone, and MPS gives it its share and no more memory."""
    variables = {name: value for name, value in inherited.items() if name not in _MPS_CLIENT_VARIABLES}
    variables["CUDA_VISIBLE_DEVICES"] = partition.device
    if partition.means == "mps":
        variables["CUDA_MPS_PIPE_DIRECTORY"] = partition.pipe_directory
        if partition.share_pct:
            variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{partition.share_pct:g}"
        if partition.memory_limit_bytes:
            limit_mib = max(1, partition.memory_limit_bytes // 2**20)
            variables["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={limit_mib}M"  # of device 0, the only one it sees
    return variables


def enter(partition: Partition, driver: Driver | None = None) -> None:
    """Make the green context that holds the share, where that is the means; LoadFailed where it cannot be had.

    The calling thread has it from then on; an engine that makes another context current leaves it, which `obtained`
    sees.
    """
    if partition.means != "green":
        return
    driver = driver or _driver()
    smallest, step = driver.green_granularity()
    total = partition.units or driver.sm_count()
    driver.make_green_context(green_sm_count(total, partition.share_pct, smallest, step))


def obtained(partition: Partition, on_host: Obtained, driver: Driver | None = None) -> Obtained:
    """`on_host` with the SMs that this process has.

    A model that has not used the GPU yet has no context, and the daemon would not know it.
    """
    driver = driver or _driver()
    if partition.means == "mps":
        driver.hold_context()
    count = driver.context_sm_count() if partition.means == "green" else driver.sm_count()
    return replace(on_host, sm_count=count)


def green_sm_count(total: int, share_pct: float, smallest: int, step: int) -> int:
    """The number of SMs nearest to the share that a green context can have."""
    exact = total * share_pct / 100
    steps = round((exact - smallest) / step) if exact > smallest else 0
    return min(smallest + steps * step, total - (total - smallest) % step)


def _driver() -> Driver:
    from efserve.partitions.cuda_driver import CudaDriver

    driver = CudaDriver.open()
    if driver is None:
        raise LoadFailed("a GPU was asked for, but there is no NVIDIA driver here (libcuda.so.1); see `efserve doctor`")
    return driver
