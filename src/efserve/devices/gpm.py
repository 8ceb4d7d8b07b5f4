"""How busy a GPU's SMs and memory were between two moments: NVML's GPU performance monitoring, from Hopper on.

Functions and structures as in nvidia-ml-py 13. Never run on hardware so far. Without it, everything is None.
"""

from dataclasses import dataclass
from typing import Any

from efserve.devices.nvml import Nvml


@dataclass(frozen=True, slots=True)
class Activity:
    """Means over a time, in percent; None: not told."""

    sm_pct: float | None = None  # SMs that were busy
    dram_pct: float | None = None  # of the memory's bandwidth


def take_sample(nvml: Nvml, uuid: str) -> Any | None:
    """The counters of a GPU now, to be given to `activity` and then to `free`; None where there are none."""
    handle = nvml.ask("nvmlDeviceGetHandleByUUID", uuid.encode())
    support = None if handle is None else nvml.ask("nvmlGpmQueryDeviceSupport", handle)
    if not getattr(support, "isSupportedDevice", 0):
        return None
    sample = nvml.ask("nvmlGpmSampleAlloc")
    if sample is not None and nvml.ask("nvmlGpmSampleGet", handle, sample) is None:
        free(nvml, sample)
        return None
    return sample


def activity(nvml: Nvml, before: Any | None, after: Any | None) -> Activity:
    """What happened between two samples."""
    if before is None or after is None:
        return Activity()
    library = nvml.library
    request = library.c_nvmlGpmMetricsGet_t()
    request.version = library.NVML_GPM_METRICS_GET_VERSION
    request.sample1, request.sample2 = before, after
    wanted = (library.NVML_GPM_METRIC_SM_UTIL, library.NVML_GPM_METRIC_DRAM_BW_UTIL)
    request.numMetrics = len(wanted)
    for metric, number in zip(request.metrics, wanted, strict=False):
        metric.metricId = number
    if nvml.ask("nvmlGpmMetricsGet", request) is None:
        return Activity()
    sm, dram = (request.metrics[at].value if request.metrics[at].nvmlReturn == 0 else None for at in range(2))
    return Activity(sm, dram)


def free(nvml: Nvml, sample: Any) -> None:
    """Give a sample back."""
    nvml.ask("nvmlGpmSampleFree", sample)
