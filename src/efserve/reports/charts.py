"""The figures of a report: from the levels of one result to charts, each with its caption."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from efserve.records import LevelResult
from efserve.reports.levels import goodput_per_s, ms, reported, short_name, spread
from efserve.reports.markup import Markup, Node, element
from efserve.reports.plot import Axis, Band, Bar, Label, Point, Range, Series, bar_plot, legend, xy_plot
from efserve.reports.scale import Scale, amount, exact_scale, latency_scale, linear_scale, tick_text
from efserve.reports.timeline import Stretch, bin_length_s, bins, stretches

PERCENTILES = (("p50", 50.0, "s1"), ("p90", 90.0, "s3"), ("p99", 99.0, "s2"), ("p99.9", 99.9, "s5"))
NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
MOST_LEVEL_NAMES = 12  # on one axis
CURVE_POINTS = 120
MODEL_COLORS = ("s1", "s2", "s3", "s5", "s4", "s6")
LETTER_PART = 0.022  # of the width of a chart on a telephone


def figure(title: str, note: str, *content: Node, wide: bool = False) -> Markup:
    """A chart with its heading and the sentence that says how to read it."""
    caption = element("figcaption", element("h3", title), element("p", note) if note else None)
    return element("figure", caption, content, class_="wide" if wide else None)


def level_color(index: int) -> str:
    """The colour of a level, made by `page.level_colors`."""
    return f"l{index}"


def latency_by_throughput(levels: Sequence[LevelResult]) -> Markup | None:
    """Percentiles of the latency over the throughput, a point per level."""
    measured = [level for level in levels if level.statistics.latency]
    if not measured:
        return None
    series, values = [], []
    for name, rank, color in PERCENTILES:
        points = [(level.statistics.inferences_per_s, _percentile_ms(level, rank)) for level in measured]
        tips = [
            f"{level.record.load.label}: {name} {amount(y)} ms at {amount(x)} infer/s"
            for level, (x, y) in zip(measured, points, strict=True)
        ]
        series.append(Series(name, color, points, tips, dots=True))
        values += [y for _, y in points]
    x = Axis("throughput (infer/s)", linear_scale([level.statistics.inferences_per_s for level in measured]))
    y = Axis("latency (ms)", latency_scale(values))
    labels = [Label(level.statistics.inferences_per_s, short_name(level.record)) for level in measured]
    chart = xy_plot("Latency percentiles over throughput", x, y, series, extras=_apart(labels, x.scale))
    note = "A point per level, joined in the order in which they were measured; the names of the levels stand above."
    return figure("Latency against throughput", note, chart, legend([(s.name, s.color, None) for s in series]))


def _apart(labels: Sequence[Label], scale: Scale) -> list[Label]:
    """Labels that keep a distance along x, for a narrow window: what would cover the one before is left out."""
    kept: list[Label] = []
    for label in labels:
        room = 0.02 + LETTER_PART * len(label.text)
        if all(abs(scale.at(label.x) - scale.at(other.x)) > room for other in kept):
            kept.append(label)
    return kept


def _percentile_ms(level: LevelResult, rank: float) -> float:
    latency = level.statistics.latency
    assert latency is not None
    by_rank = {50.0: latency.p50_us, 90.0: latency.p90_us, 99.0: latency.p99_us, 99.9: latency.p99_9_us}
    return by_rank[rank] / 1e3


def level_axis(levels: Sequence[LevelResult], label: str) -> Axis:
    """Levels side by side in their order, at 0, 1, 2, ..."""
    every = -(-len(levels) // MOST_LEVEL_NAMES)
    ticks = tuple(float(at) for at in range(0, len(levels), every))
    names = {at: short_name(levels[int(at)].record) for at in ticks}
    return Axis(label, Scale(-0.5, len(levels) - 0.5, ticks), names)


def throughput_by_level(levels: Sequence[LevelResult], load_name: str) -> Markup:
    """Answered requests per second of each level with their interval, and what was offered in an open loop."""
    points = [(float(at), level.statistics.requests_per_s) for at, level in enumerate(levels)]
    tips = [_rate_tip(level) for level in levels]
    series = [Series("answered", "s1", points, tips, dots=True)]
    offered = [(float(at), level.statistics.due_per_s) for at, level in enumerate(levels)]
    if any(level.record.load.is_open for level in levels):
        series.insert(0, Series("offered", "s6", offered, dashed=True))
    within = [(float(at), rate) for at, level in enumerate(levels) if (rate := goodput_per_s(level)) is not None]
    if within:
        series.append(Series("within the SLO", "s3", within, _good_tips(levels, within), dots=True))
    intervals = [level.statistics.intervals.requests_per_s for level in levels]
    ranges = [Range(at, known.low, known.high, "s1") for at, known in enumerate(intervals) if known is not None]
    y = Axis("requests/s", linear_scale([rate for _, rate in (*points, *offered)] + [one.high for one in ranges]))
    chart = xy_plot("Throughput of each level", level_axis(levels, load_name), y, series, extras=ranges)
    note = "Answered requests per second; the bars are 95 % confidence intervals."
    entries = [(s.name, s.color, None) for s in series] if len(series) > 1 else []
    return figure("Throughput by level", note, chart, legend(entries, kind="stroke") if entries else None)


def _rate_tip(level: LevelResult) -> str:
    statistics = level.statistics
    spreads = spread(statistics.requests_per_s, statistics.intervals.requests_per_s)
    return f"{level.record.load.label}: {amount(statistics.requests_per_s)} requests/s {spreads}".rstrip()


def _good_tips(levels: Sequence[LevelResult], points: Sequence[Point]) -> list[str]:
    return [f"{levels[int(at)].record.load.label}: {amount(rate)} answers/s within the SLO" for at, rate in points]


def model_latency(levels: Sequence[LevelResult], load_name: str) -> Markup | None:
    """Of mixed traffic: p99 of each model over the levels, and its SLO; the first six models."""
    names = list(dict.fromkeys(model.name for level in levels for model in level.statistics.models))
    if len(names) < 2:
        return None
    series, entries = [], []
    for name, color in zip(names, MODEL_COLORS, strict=False):
        own = [
            (at, model) for at, level in enumerate(levels) for model in level.statistics.models if model.name == name
        ]
        points = [(float(at), model.latency.p99_us / 1e3) for at, model in own if model.latency is not None]
        series.append(Series(name, color, points, _tips(levels, points, name), dots=True))
        goals = [(float(at), model.slo_ms) for at, model in own if model.slo_ms]
        series.append(Series(f"SLO of {name}", color, goals, dashed=True))
        entries.append((name, color, None))
    y = Axis("p99 (ms)", latency_scale([value for line in series for _, value in line.points]))
    chart = xy_plot("p99 of each model", level_axis(levels, load_name), y, series)
    left_out = f" {len(names) - len(MODEL_COLORS)} more are left out." if len(names) > len(MODEL_COLORS) else ""
    note = f"p99 of each model; dashed lines are their SLOs.{left_out}"
    return figure("By model", note, chart, legend(entries, kind="stroke"))


def distribution(levels: Sequence[LevelResult]) -> Markup | None:
    """Latency over its percentile, the axis stretched towards the tail; a line per level."""
    series, values, deepest = [], [], 0.0
    for at, level in enumerate(levels):
        latency_ms = np.sort(reported(level.record).latency_us) / 1e3
        if not latency_ms.size:
            continue
        points, tips = _curve(latency_ms, level.record.load.label)
        deepest = max(deepest, points[-1][0])
        values += [y for _, y in points]
        series.append(Series(short_name(level.record), level_color(at), points, tips, level=str(at)))
    if not series:
        return None
    ticks = tuple(_nines(rank) for rank in NINES if _nines(rank) <= deepest + 1e-9)
    names = {_nines(rank): f"{rank:g}" for rank in NINES}
    x = Axis("percentile of requests, the tail stretched (%)", Scale(0.0, max(deepest, 1e-3), ticks), names)
    y = Axis("latency (ms)", latency_scale(values))
    chart = xy_plot("Latency by percentile, for each level", x, y, series, height_px=300)
    note = "The share of requests, along the axis, that took at most so long. A line per level, to its slowest request."
    entries = [(s.name, s.color, s.level) for s in series]
    return figure("Latency distribution", note, chart, legend(entries, kind="stroke"), wide=True)


def _nines(rank: float) -> float:
    """Place of a percentile on an axis of nines: 0 for 0, 1 for 90, 2 for 99, ..."""
    return float(-np.log10(1 - rank / 100))


def _curve(latency_ms: npt.NDArray[np.float64], name: str) -> tuple[list[Point], list[str]]:
    """Points of the distribution, evenly along the axis of nines, with a text where a percentile has a name."""
    count = latency_ms.size
    own_places = -np.log10(1 - np.arange(1, count + 1) / (count + 1))
    named = {_nines(rank): rank for rank in NINES[1:] if _nines(rank) < own_places[-1]}
    every = np.unique(np.concatenate([np.linspace(0.0, own_places[-1], CURVE_POINTS), list(named)]))
    points = list(zip(every.tolist(), np.interp(every, own_places, latency_ms).tolist(), strict=True))
    tips = [
        f"{name}: {_rank_name(x, named)} {amount(y)} ms" if x in named or not at % 8 else ""
        for at, (x, y) in enumerate(points)
    ]
    tips[-1] = f"{name}: max {amount(points[-1][1])} ms"
    return points, tips


def _rank_name(x: float, named: Mapping[float, float]) -> str:
    return f"p{named[x]:g}" if x in named else f"p{100 * (1 - 10.0**-x):.4g}"


def run_panels(levels: Sequence[LevelResult]) -> Markup:
    """Throughput, latency and errors over the time of the run, all levels one after the other."""
    places = stretches(levels)
    length_s = bin_length_s(places[-1].end_s)
    found = [bins(level.record, length_s) for level in levels]
    x = Axis("time under measurement (s)", exact_scale(0.0, places[-1].end_s))
    bands = level_bands(levels, places)
    failed = any(level.record.failures for level in levels)
    panels: list[Node] = []
    rates, middles, tails, errors = [], [], [], []
    for at, (place, cut) in enumerate(zip(places, found, strict=True)):
        times = (cut.borders_s + place.start_s).tolist()
        level = str(at)
        rates.append(Series("", "s1", _steps(times, cut.requests_per_s.tolist()), shape="step", level=level))
        mids = [(left + right) / 2 for left, right in pairwise(times)]
        middles.append(_line("s1", mids, cut.p50_ms.tolist(), "p50", level))
        tails.append(_line("s2", mids, cut.p99_ms.tolist(), "p99", level))
        errors.append(Series("", "bad", _steps(times, cut.errors_per_s.tolist()), shape="step", level=level))
    y = Axis("requests/s", linear_scale([v for line in rates for _, v in line.points]))
    panels.append(xy_plot("Throughput over time", x, y, rates, height_px=140, extras=bands, shares_x=True))
    values = [v for line in (*middles, *tails) for _, v in line.points]
    y = Axis("latency (ms): p50 and p99", latency_scale(values))
    panels.append(
        xy_plot("Latency over time", x, y, [*middles, *tails], height_px=140, extras=_unnamed(bands), shares_x=failed)
    )
    if failed:
        y = Axis("errors/s", linear_scale([v for line in errors for _, v in line.points]))
        panels.append(xy_plot("Errors over time", x, y, errors, height_px=90, extras=_unnamed(bands)))
    panels.append(legend([("p50", "s1", None), ("p99", "s2", None)], kind="stroke"))
    note = f"All windows of all levels, in steps of {tick_text(length_s * 1e3)} ms; warm-ups are left out."
    return figure("Over the run", f"{note}{'' if failed else ' No request failed.'}", panels, wide=True)


def level_bands(levels: Sequence[LevelResult], places: Sequence[Stretch]) -> list[Band]:
    """The stretches of the levels, of which at most `MOST_LEVEL_NAMES` are named."""
    every = -(-len(levels) // MOST_LEVEL_NAMES)
    return [
        Band(place.start_s, place.end_s, "" if at % every else short_name(level.record), str(at))
        for at, (level, place) in enumerate(zip(levels, places, strict=True))
    ]


def _unnamed(bands: Sequence[Band]) -> list[Band]:
    return [Band(band.start, band.end, "", band.level) for band in bands]


def _steps(borders: Sequence[float], values: Sequence[float]) -> list[Point]:
    """A point at the begin of each bin, and one at the end of the last."""
    return [*zip(borders[:-1], values, strict=True), (borders[-1], values[-1])]


def _line(color: str, times: Sequence[float], values: Sequence[float], name: str, level: str) -> Series:
    points = [(time, value) for time, value in zip(times, values, strict=True) if math.isfinite(value)]
    return Series(name, color, points, shape="line", level=level)


def server_split(levels: Sequence[LevelResult]) -> Markup | None:
    """Where the mean latency goes: the server's own split, and what is left for network and client."""
    known = [level for level in levels if level.statistics.server and level.statistics.latency]
    if not known:
        return None
    rows = []
    for level in known:
        split, latency = level.statistics.server, level.statistics.latency
        assert split is not None
        assert latency is not None
        inside = (
            ("queue", "s2", split.queue_us),
            ("input", "s3", split.compute_input_us),
            ("inference", "s1", split.compute_infer_us),
            ("output", "s5", split.compute_output_us),
        )
        rest = max(latency.mean_us - sum(value for _, _, value in inside), 0.0)
        parts = [
            (color, value / 1e3, f"{level.record.load.label}: {name} {ms(value)} ms of {ms(latency.mean_us)} ms")
            for name, color, value in (*inside, ("outside the server", "s6", rest))
        ]
        rows.append(Bar(short_name(level.record), parts, ms(latency.mean_us), faint=False))
    scale = linear_scale([sum(value for _, value, _ in row.parts) for row in rows], count=4)
    names = (("queue", "s2"), ("input", "s3"), ("inference", "s1"), ("output", "s5"), ("outside the server", "s6"))
    chart = bar_plot("Parts of the mean latency", "mean latency (ms)", rows, scale)
    note = "The server's statistics per request; the rest is network, protocol and client."
    return figure("Where the time goes", note, chart, legend([(name, color, None) for name, color in names]))


def batch_sizes(levels: Sequence[LevelResult]) -> Markup | None:
    """The mean batch that the model ran, for each level."""
    known = [(level, level.statistics.server) for level in levels if level.statistics.server]
    if not known:
        return None
    rows = [
        Bar(
            short_name(level.record),
            [("s1", split.mean_batch, f"{level.record.load.label}: {split.mean_batch:.2f} rows per run of the model")],
            f"{split.mean_batch:.2f}",
        )
        for level, split in known
        if split is not None
    ]
    scale = linear_scale([row.parts[0][1] for row in rows], count=4)
    note = "Rows in one run of the model, on average: what batching made of the load."
    return figure("Batch sizes", note, bar_plot("Mean batch", "rows per run", rows, scale))


def delays(levels: Sequence[LevelResult], load_name: str) -> Markup | None:
    """Of open loops: latency from the intended send, beside the service time from the actual one."""
    is_open = [level.record.load.is_open and level.statistics.latency is not None for level in levels]
    found = [(at, reported(level.record)) for at, level in enumerate(levels) if is_open[at]]
    if not found:
        return None
    latency = [(float(at), float(np.percentile(part.latency_us, 99)) / 1e3) for at, part in found]
    service = [(float(at), float(np.percentile(part.service_us, 99)) / 1e3) for at, part in found]
    series = [
        Series("from the intended send", "s2", latency, _tips(levels, latency, "latency"), dots=True),
        Series("from the actual send", "s1", service, _tips(levels, service, "service"), dots=True),
    ]
    y = Axis("p99 (ms)", latency_scale([value for _, value in (*latency, *service)]))
    chart = xy_plot("Latency and service time", level_axis(levels, load_name), y, series)
    note = "Where the lines part, requests waited before they were sent: service time hides that, latency counts it."
    return figure("Latency and service time", note, chart, legend([(s.name, s.color, None) for s in series]))


def _tips(levels: Sequence[LevelResult], points: Sequence[Point], name: str) -> list[str]:
    return [f"{levels[int(at)].record.load.label}: {name} p99 {amount(value)} ms" for at, value in points]
