"""Metrics of the served models and of the machine's processors and GPUs, in Prometheus' text format.

Names, labels and units are Triton's, so that dashboards made for it work; docs/metrics.md gives each as a formula.
Numbers are written as plain decimals: perf_analyzer reads no exponents.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric

from efserve.counters import Histogram, ModelCounters
from efserve.devices.cpu import cpu_ticks, memory_in_use
from efserve.devices.nvml import Nvml, nvml
from efserve.frontend.service import Model, Placement, Service

Labels = dict[str, str]

# name, help, value of the counters
_COUNTERS: tuple[tuple[str, str, Callable[[ModelCounters], int]], ...] = (
    ("nv_inference_request_success", "Successful inference requests", lambda c: c.successes),
    ("nv_inference_count", "Inferences performed (rows; a request of 4 rows counts 4)", lambda c: c.rows),
    ("nv_inference_exec_count", "Model executions (batches)", lambda c: c.executions),
    ("nv_inference_request_duration_us", "Cumulative duration of successful requests", lambda c: c.success_ns // 1000),
    ("nv_inference_queue_duration_us", "Cumulative time requests waited in the queue", lambda c: c.queue_ns // 1000),
    ("nv_inference_compute_input_duration_us", "Cumulative time for inputs", lambda c: c.compute_input_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Cumulative time for inference", lambda c: c.compute_infer_ns // 1000),
    ("nv_inference_compute_output_duration_us", "Cumulative time for outputs", lambda c: c.compute_output_ns // 1000),
)
_CACHE_COUNTERS: tuple[tuple[str, str, Callable[[ModelCounters], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Requests answered from the response cache", lambda c: c.cache_hits),
    ("nv_cache_num_misses_per_model", "Requests that the response cache had no answer for", lambda c: c.cache_misses),
    ("nv_cache_hit_duration_per_model", "Cumulative time of cache hits, in us", lambda c: c.cache_hit_ns // 1000),
    ("nv_cache_miss_duration_per_model", "Cumulative time of cache misses, in us", lambda c: c.cache_miss_ns // 1000),
)


class ServiceCollector:
    """All metrics of one service, read from its counters when asked."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The metric families at this moment."""
        served = self._service.models()
        models = [(_labels(model), model.counters) for model in served]
        yield from _counters(_COUNTERS, models)
        yield _failures(models)
        caching = [(_labels(model), model.counters) for model in served if model.config.response_cache]
        yield from _counters(_CACHE_COUNTERS, caching)
        yield _pending(models)
        durations = Metric("efserve_request_duration_seconds", "Time from arrival to outcome of requests", "histogram")
        rows = Metric("efserve_batch_rows", "Rows per model execution", "histogram")
        for labels, counters in models:
            _add_histogram(durations, labels, counters.request_durations, unit=Decimal("1e-9"))
            _add_histogram(rows, labels, counters.rows_per_batch, unit=Decimal(1))
        yield durations
        yield rows
        yield from _placements(self._service.placements())
        yield from gpu_metrics()


_LEAST_WINDOW_S = 1.0
_HOST_GAUGES = {
    "nv_cpu_utilization": "CPU utilization of the machine (0 to 1)",
    "nv_cpu_memory_used_bytes": "Memory of the machine in use",
    "nv_cpu_memory_total_bytes": "Memory of the machine",
}


class HostCollector:
    """The machine's processors and memory; how busy they were is told for the time since the last look."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._read = clock(), cpu_ticks(root)
        self._utilization = 0.0

    def collect(self) -> Iterator[Metric]:
        """The metric families at this moment; two looks within a second see one utilisation."""
        (before_s, before), now_s = self._read, self._clock()
        if now_s - before_s >= _LEAST_WINDOW_S:
            after = cpu_ticks(self._root)
            total = after.total - before.total
            self._utilization = min(1.0, max(0.0, (after.busy - before.busy) / total)) if total > 0 else 0.0
            self._read = now_s, after
        used_bytes, total_bytes = memory_in_use(self._root)
        values = (round(self._utilization, 4), used_bytes, total_bytes)
        for (name, text), value in zip(_HOST_GAUGES.items(), values, strict=True):
            family = Metric(name, text, "gauge")
            family.add_sample(name, {}, value)
            yield family


def expose(service: Service, host: HostCollector) -> str:
    """Everything that the metrics page shows."""
    process = ProcessCollector(registry=None)
    families = [*ServiceCollector(service).collect(), *host.collect(), *process.collect()]
    return "".join(_family_text(family) for family in families if family.samples)


def _labels(model: Model) -> Labels:
    return {"model": model.config.name, "version": model.version}


def _counters(
    kinds: Iterable[tuple[str, str, Callable[[ModelCounters], int]]], models: Sequence[tuple[Labels, ModelCounters]]
) -> Iterator[Metric]:
    for name, text, value in kinds:
        family = Metric(name, text, "counter")
        for labels, counters in models:
            family.add_sample(name, labels, value(counters))
        yield family


def _failures(models: Sequence[tuple[Labels, ModelCounters]]) -> Metric:
    failures = Metric("nv_inference_request_failure", "Failed inference requests, by reason", "counter")
    for labels, counters in models:
        for reason, number in sorted(counters.failures.items()):
            failures.add_sample(failures.name, {**labels, "reason": reason}, number)
    return failures


def _pending(models: Iterable[tuple[Labels, ModelCounters]]) -> Metric:
    family = Metric("nv_inference_pending_request_count", "Requests waiting for a model instance now", "gauge")
    for labels, counters in models:
        family.add_sample(family.name, labels, counters.pending())
    return family


def _add_histogram(family: Metric, labels: Labels, histogram: Histogram, unit: Decimal) -> None:
    bounds = [_plain(bound * unit) for bound in histogram.bounds]
    sums = histogram.cumulative()
    for bound, number in zip([*bounds, "+Inf"], sums, strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, number)
    family.add_sample(f"{family.name}_count", labels, sums[-1])
    family.add_sample(f"{family.name}_sum", labels, float(histogram.total * unit))


# name, help, value of a placement
_PLACEMENT_GAUGES: tuple[tuple[str, str, Callable[[Placement], float]], ...] = (
    ("efserve_placement_rss_bytes", "Resident memory of an instance's worker process", lambda p: p.rss_bytes),
    ("efserve_placement_cores", "Cores that an instance is pinned to; 0: not pinned", lambda p: len(p.cores)),
    ("efserve_placement_threads", "Engine threads of an instance", lambda p: p.threads),
    ("efserve_placement_share_asked_pct", "Share of its device that was asked for; 0: none", lambda p: p.share_pct),
    ("efserve_placement_share_obtained_pct", "Share of its device as read back", lambda p: p.obtained_pct),
    ("efserve_placement_sm_count", "SMs that an instance sees; 0: not on a GPU", lambda p: p.sm_count),
    (
        "efserve_placement_memory_limit_bytes",
        "Memory limit; 0: none",
        lambda p: p.memory_limit_bytes,
    ),
)


def _placements(placements: Sequence[Placement]) -> Iterator[Metric]:
    labels = [
        {"device": p.device, "instance": str(p.instance), "model": p.model, "version": p.version} for p in placements
    ]
    state = Metric("efserve_placement_state", "1 for the state that an instance is in", "gauge")
    for place, names in zip(placements, labels, strict=True):
        state.add_sample(state.name, {**names, "state": place.state}, 1)
    yield state
    for name, text, value in _PLACEMENT_GAUGES:
        family = Metric(name, text, "gauge")
        for place, names in zip(placements, labels, strict=True):
            family.add_sample(name, names, value(place))
        yield family


def gpu_metrics(library: Nvml | None = None) -> Iterator[Metric]:
    """Utilisation, power and memory of each GPU, as far as it tells them; nothing on a machine without."""
    library = library or nvml()
    families = {name: Metric(name, text, kind) for name, (kind, text) in _GPU_METRICS.items()}
    for handle in library.handles().values():
        labels = {"gpu_uuid": str(library.ask("nvmlDeviceGetUUID", handle))}
        rates = library.ask("nvmlDeviceGetUtilizationRates", handle)
        power_mw = library.ask("nvmlDeviceGetPowerUsage", handle)
        limit_mw = library.ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        energy_mj = library.ask("nvmlDeviceGetTotalEnergyConsumption", handle)
        memory = library.ask("nvmlDeviceGetMemoryInfo", handle)
        values = (
            None if rates is None else rates.gpu / 100,
            None if power_mw is None else power_mw / 1000,
            None if limit_mw is None else limit_mw / 1000,
            None if energy_mj is None else energy_mj / 1000,
            None if memory is None else memory.used,
            None if memory is None else memory.total,
        )
        for family, value in zip(families.values(), values, strict=True):
            if value is not None:
                family.add_sample(family.name, labels, value)
    yield from families.values()


_GPU_METRICS = {
    "nv_gpu_utilization": ("gauge", "GPU utilization (0 to 1)"),
    "nv_gpu_power_usage": ("gauge", "GPU power usage in watts"),
    "nv_gpu_power_limit": ("gauge", "Power that the GPU may draw, in watts"),
    "nv_energy_consumption": ("counter", "Energy that the GPU has used since its driver was loaded, in joules"),
    "nv_gpu_memory_used_bytes": ("gauge", "GPU memory in use"),
    "nv_gpu_memory_total_bytes": ("gauge", "GPU memory"),
}


def _family_text(family: Metric) -> str:
    name = family.samples[0].name if family.type == "counter" else family.name  # counters of others end in _total
    lines = [f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"]
    for sample in family.samples:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(sample.labels.items(), key=_order))
        prefix = f"{sample.name}{{{labels}}}" if labels else sample.name
        lines.append(f"{prefix} {_plain(sample.value)}")
    return "\n".join(lines) + "\n"


def _order(label: tuple[str, str]) -> tuple[bool, str]:
    """Alphabetical, as Triton writes labels; a histogram's bound comes last."""
    return label[0] == "le", label[0]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _plain(value: float | Decimal) -> str:
    """A number without an exponent and without needless zeros."""
    text = f"{value if isinstance(value, Decimal) else Decimal(repr(value)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
