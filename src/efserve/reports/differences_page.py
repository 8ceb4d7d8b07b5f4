"""The comparison of two results on the HTML page: percentiles over throughput of both, and the table of differences."""

from collections.abc import Sequence

from efserve.records import BenchResult, LevelResult
from efserve.reports.charts import figure
from efserve.reports.differences import (
    CHANCE,
    DRIFT,
    Difference,
    LevelDifferences,
    RunDifferences,
    change,
    interval_text,
)
from efserve.reports.markup import Markup, Node, element
from efserve.reports.plot import Axis, Range, Series, legend, xy_plot
from efserve.reports.scale import Scale, amount, latency_scale, linear_scale

WORDS = {"noise": "quiet", "better": "good", "worse": "bad", "unclear": "quiet"}


def differences_section(
    comparison: RunDifferences, first_name: str, second_name: str, results: tuple[BenchResult, BenchResult]
) -> Markup:
    """One section: what differs in the setup, the pictures, the table."""
    pictures: list[Node] = [_overlay((first_name, second_name), results)]
    if comparison.levels:
        pictures.append(_ratios(comparison))
    return element(
        "section",
        element("h2", f"{second_name} against {first_name}"),
        element("p", _summary(comparison)),
        _setup(comparison),
        element("div", pictures, class_="figures"),
        _table(comparison, first_name, second_name) if comparison.levels else None,
        element("p", f"{CHANCE} {DRIFT}", class_="note"),
    )


def _summary(comparison: RunDifferences) -> str:
    verdicts = comparison.verdicts
    told = [f"{verdicts[word]} {word}" for word in ("better", "worse", "noise", "unclear") if word in verdicts]
    text = f"Of {sum(verdicts.values())} figures: {', '.join(told)}." if told else "No level is in both results."
    for name, only in (("first", comparison.only_first), ("second", comparison.only_second)):
        text += f" Only in the {name}: {', '.join(only)}." if only else ""
    return text


def _setup(comparison: RunDifferences) -> Node:
    if not comparison.setup:
        return element("p", "Options, model, server and machine are the same.", class_="note")
    count = len(comparison.setup)
    summary = element("summary", f"{count} difference{'s' if count > 1 else ''} of the setup")
    return element("details", summary, element("ul", [element("li", line) for line in comparison.setup]), open=True)


def _overlay(names: tuple[str, str], results: tuple[BenchResult, BenchResult]) -> Markup:
    series = []
    for name, result, color in zip(names, results, ("s1", "s4"), strict=True):
        series += [_line(f"{name} {rank}", result.levels, color, rank) for rank in ("p50", "p99")]
    x = Axis("throughput (infer/s)", linear_scale([px for line in series for px, _ in line.points]))
    y = Axis("latency (ms): p50 solid, p99 dashed", latency_scale([py for line in series for _, py in line.points]))
    chart = xy_plot("Latency over throughput of both", x, y, series)
    entries = [(name, color, None) for name, color in zip(names, ("s1", "s4"), strict=True)]
    return figure("Latency against throughput", "A point per level of each run.", chart, legend(entries, kind="stroke"))


def _line(name: str, levels: Sequence[LevelResult], color: str, rank: str) -> Series:
    points, tips = [], []
    for level in levels:
        latency = level.statistics.latency
        if latency is not None:
            value_ms = (latency.p50_us if rank == "p50" else latency.p99_us) / 1e3
            points.append((level.statistics.inferences_per_s, value_ms))
            rate = amount(level.statistics.inferences_per_s)
            tips.append(f"{name} at {level.record.load.label}: {amount(value_ms)} ms, {rate} infer/s")
    return Series(name, color, points, tips, dots=True, dashed=rank == "p99")


def _ratios(comparison: RunDifferences) -> Markup:
    """The ratio of throughput and mean latency of each level with its interval, around the line of no difference."""
    levels = comparison.levels
    every = -(-len(levels) // 12)
    ticks = tuple(float(at) for at in range(0, len(levels), every))
    x = Axis("level", Scale(-0.5, len(levels) - 0.5, ticks), {at: levels[int(at)].label for at in ticks})
    series, ranges, values = [], [], [0.0]
    for name, color, shift in (("throughput", "s1", -0.12), ("mean", "s2", 0.12)):
        points, tips = [], []
        for at, level in enumerate(levels):
            for found in level.differences:
                if found.figure == name and found.interval is not None:
                    points.append((at + shift, 100 * (found.ratio - 1)))
                    tips.append(f"{level.name}: {name} {change(found)}, {interval_text(found)}: {found.verdict}")
                    low, high = 100 * (found.interval.low - 1), 100 * (found.interval.high - 1)
                    ranges.append(Range(at + shift, low, high, color))
                    values += [low, high]
        series.append(Series(name, color, points, tips, shape="dots"))
    y = Axis("change (%)", linear_scale(values))
    zero = Series("no difference", "s6", [(-0.5, 0.0), (len(levels) - 0.5, 0.0)], dashed=True)
    chart = xy_plot("Change of each level", x, y, [zero, *series], extras=ranges)
    entries = [("throughput", "s1", None), ("mean latency", "s2", None)]
    return figure(
        "Change with its interval", "Where a bar crosses zero, the difference is noise.", chart, legend(entries)
    )


def _table(comparison: RunDifferences, first_name: str, second_name: str) -> Markup:
    names = ("level", "figure", first_name, second_name, "change", "95 % interval", "verdict")
    head = element("thead", element("tr", [element("th", name, scope="col") for name in names]))
    rows = [_row(level, found, at == 0) for level in comparison.levels for at, found in enumerate(level.differences)]
    return element("div", element("table", head, element("tbody", rows)), class_="scroll", tabindex="0")


def _row(level: LevelDifferences, found: Difference, is_first: bool) -> Markup:
    mark = " *" if any(level.unstable) else ""
    return element(
        "tr",
        element("th", f"{level.name}{mark}" if is_first else "", scope="row"),
        element("td", f"{found.figure} ({found.unit})"),
        element("td", amount(found.first)),
        element("td", amount(found.second)),
        element("td", change(found)),
        element("td", interval_text(found)),
        element("td", element("span", found.verdict, class_=WORDS[found.verdict])),
    )
