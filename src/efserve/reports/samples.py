"""Gauges read during the levels, as charts over the time of the run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efserve.records import LevelResult
from efserve.reports.charts import figure, level_bands
from efserve.reports.markup import Markup
from efserve.reports.plot import Axis, Point, Series, legend, xy_plot
from efserve.reports.scale import amount, exact_scale, linear_scale
from efserve.reports.timeline import stretches

COLORS = ("s1", "s2", "s3", "s5", "s4", "s6")
MOST_TIPS = 60  # readings of one level that are named one by one


@dataclass(frozen=True, slots=True)
class Gauge:
    """One chart: which series of the samples it shows (with `[...]` after them or not), under which names."""

    title: str
    unit: str
    divisor: float
    names: dict[str, str]


_CORES = {"workers_cpu_cores": "workers", "gateway_cpu_cores": "gateway", "client_cpu_cores": "client"}
_MEMORY = {"server_rss_bytes": "server", "workers_rss_bytes": "workers", "client_rss_bytes": "client"}
_ANSWERED = {"requests": ""}

GAUGES = (
    Gauge("CPU", "cores", 1, _CORES),
    Gauge("Resident memory", "MiB", 2**20, _MEMORY),
    Gauge("GPU utilisation", "%", 1, {"gpu_utilization_pct": "GPU"}),
    Gauge("GPU power", "W", 1, {"gpu_power_w": "GPU"}),
    Gauge("GPU memory", "GiB", 2**30, {"gpu_memory_used_bytes": "GPU"}),
    Gauge("Pending requests", "requests", 1, {"pending_requests": "waiting in the server"}),
    Gauge("Answered since a level began", "requests", 1, _ANSWERED),
)


def sample_figures(levels: Sequence[LevelResult]) -> list[Markup]:
    """A chart for each gauge, at most six lines in each; none where nothing was sampled."""
    sampled = [level.record.samples for level in levels if level.record.samples]
    note = " ".join(dict.fromkeys(samples.remark for samples in sampled if samples.remark))
    names = list(dict.fromkeys(name for samples in sampled for name in samples.series))
    drawn = [_figure(levels, gauge, names, note) for gauge in GAUGES]
    return [chart for chart in drawn if chart is not None]


def _figure(levels: Sequence[LevelResult], gauge: Gauge, names: Sequence[str], note: str) -> Markup | None:
    own = [name for base in gauge.names for name in names if name.partition("[")[0] == base]
    lines = [(_told(gauge, name), _line(levels, name, gauge.divisor)) for name in own]
    lines = [(name, parts) for name, parts in lines if any(parts)]
    if not lines or (gauge.names is _ANSWERED and len(lines) < 2):
        return None
    places = stretches(levels)
    series, entries = [], []
    for color, (name, parts) in zip(COLORS, lines, strict=False):
        entries.append((name, color, None))
        for points in parts:
            tips = [f"{name}: {amount(value)} {gauge.unit}" for _, value in points] if len(points) <= MOST_TIPS else []
            series.append(Series(name, color, points, tips, dots=len(points) == 1))
    x = Axis("time under measurement (s)", exact_scale(0.0, places[-1].end_s))
    y = Axis(gauge.unit, linear_scale([value for line in series for _, value in line.points]))
    left_out = f" {len(lines) - len(COLORS)} more are left out." if len(lines) > len(COLORS) else ""
    chart = xy_plot(f"{gauge.title} ({gauge.unit})", x, y, series, height_px=160, extras=level_bands(levels, places))
    return figure(gauge.title, f"{note}{left_out}".strip(), chart, legend(entries, kind="stroke"))


def _told(gauge: Gauge, name: str) -> str:
    """A series in words: "workers", "GPU 1", or the name of a model."""
    base, _, which = name.partition("[")
    return f"{gauge.names[base]} {which.removesuffix(']')}".strip()


def _line(levels: Sequence[LevelResult], name: str, divisor: float) -> list[list[Point]]:
    """The values of one series, a part per level."""
    parts = []
    for level, place in zip(levels, stretches(levels), strict=True):
        samples = level.record.samples
        values = samples.series.get(name) if samples else None
        if samples is None or values is None:
            continue
        known = np.isfinite(values)
        times_s = samples.time_us[known] / 1e6 + place.start_s
        parts.append(list(zip(times_s.tolist(), (values[known] / divisor).tolist(), strict=True)))
    return parts
