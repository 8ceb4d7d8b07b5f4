"""Charts as inline SVG that fill any width: places are percentages, letters and strokes keep their size.

Colours are names of CSS variables (`s1`, `l3`), so that one picture serves both themes. Each figure stands alone and
is complete without a script; `page.js` only shows the `data-tip` of marks as they are pointed at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from efserve.reports.markup import Markup, Node, element, join, number
from efserve.reports.scale import Scale, tick_text

MOST_TICKS_NARROW = 6  # of the x axis, in a window as wide as a telephone
LETTERS_NARROW, LETTERS_HALF = 36, 64  # in the names of bands, that fit a telephone, and half a page
BAR_PX = 26  # from one bar to the next

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: what it shows with its unit, its scale, and names for ticks that are no numbers."""

    label: str
    scale: Scale
    names: Mapping[float, str] = field(default_factory=dict)

    def text(self, tick: float) -> str:
        """What stands at a tick."""
        return self.names.get(tick) or tick_text(tick)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. `tips` has a text per point, or is empty; `level` makes it selectable."""

    name: str
    color: str
    points: Sequence[Point]
    tips: Sequence[str] = ()
    shape: Literal["line", "step", "dots"] = "line"
    dots: bool = False
    dashed: bool = False
    level: str | None = None


@dataclass(frozen=True, slots=True)
class Band:
    """A named stretch of the x axis, such as the time of one level."""

    start: float
    end: float
    name: str
    level: str | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """A vertical interval at x, such as a confidence interval."""

    x: float
    low: float
    high: float
    color: str


@dataclass(frozen=True, slots=True)
class Label:
    """A short text above the plot."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar: parts from left to right as (colour, value, tip), and the text behind its end."""

    name: str
    parts: Sequence[tuple[str, float, str]]
    text: str
    faint: bool = False


def percent(place: float) -> str:
    """A place from 0 to 1 as SVG wants it."""
    return f"{number(100 * place)}%"


def xy_plot(  # each is one layer of the picture
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    height_px: int = 260,
    extras: Sequence[Band | Range | Label] = (),
    shares_x: bool = False,
) -> Markup:
    """A chart of lines over two axes; one that shares the x axis of the next one below it does not name its ticks."""
    layers: list[Node] = [
        element("title", title),
        _bands(x, [extra for extra in extras if isinstance(extra, Band)]),
        _grid(x, y, named=not shares_x),
        element(
            "svg",
            (_path(x, y, line) for line in series if line.shape != "dots"),
            viewBox="0 0 1000 1000",
            preserveAspectRatio="none",
            width="100%",
            height="100%",
            aria_hidden="true",
        ),
        (_range(x, y, extra) for extra in extras if isinstance(extra, Range)),
        (_dots(x, y, line) for line in series),
        (_label(x, extra) for extra in extras if isinstance(extra, Label)),
    ]
    picture = element("svg", layers, class_="marks", role="img", aria_label=title, height=str(height_px))
    return element(
        "div",
        element("div", y.label, class_="ylabel"),
        element("div", picture, class_="plot close" if shares_x else "plot"),
        element("div", x.label, class_="xlabel") if not shares_x else None,
        class_="chart named" if any(_is_named(extra) for extra in extras) else "chart",
    )


def _is_named(extra: Band | Range | Label) -> bool:
    """True for what has a name above the plot, for which the label of the y axis makes room."""
    return isinstance(extra, Label) or (isinstance(extra, Band) and bool(extra.name))


def _grid(x: Axis, y: Axis, *, named: bool) -> Node:
    lines: list[Node] = []
    for tick in y.scale.ticks:
        at = percent(1 - y.scale.at(tick))
        lines.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        lines.append(element("text", y.text(tick), x="-8", y=at, dy="0.35em", class_="ytick"))
    for index, tick in enumerate(x.scale.ticks):
        at = percent(x.scale.at(tick))
        thin = " thin" if len(x.scale.ticks) > MOST_TICKS_NARROW and index % 2 else ""
        lines.append(element("line", x1=at, x2=at, y1="100%", y2="100%", class_="tick"))
        if named:
            lines.append(element("text", x.text(tick), x=at, y="100%", dy="1.5em", class_=f"xtick{thin}"))
    lines.append(element("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    return lines


def _bands(x: Axis, bands: Sequence[Band]) -> Node:
    letters = sum(len(band.name) + 2 for band in bands if band.name)
    crowd = " crowded" if letters > LETTERS_HALF else " full" if letters > LETTERS_NARROW else ""
    drawn: list[Node] = []
    for index, band in enumerate(bands):
        left, right = x.scale.at(band.start), x.scale.at(band.end)
        shade = "band odd" if index % 2 else "band"
        area = element("rect", x=percent(left), width=percent(right - left), y="0", height="100%", class_=shade)
        middle = percent((left + right) / 2)
        name = element("text", band.name, x=middle, y="-6", class_=f"bandname{crowd}") if band.name else None
        drawn.append(element("g", area, name, data_level=band.level))
    return drawn


def _path(x: Axis, y: Axis, line: Series) -> Node:
    places = [(1000 * x.scale.at(px), 1000 * (1 - y.scale.at(py))) for px, py in line.points]
    if not places:
        return None
    if line.shape == "step":
        steps = [_step(at, px, py) for at, (px, py) in enumerate(places)]
    else:
        steps = [f"{'L' if at else 'M'}{number(px)} {number(py)}" for at, (px, py) in enumerate(places)]
    dashed = " dashed" if line.dashed else ""
    return element(
        "path", d="".join(steps), class_=f"{line.shape}{dashed}", style=_color(line.color), data_level=line.level
    )


def _step(at: int, px: float, py: float) -> str:
    return f"H{number(px)}V{number(py)}" if at else f"M{number(px)} {number(py)}"


def _range(x: Axis, y: Axis, interval: Range) -> Node:
    at = percent(x.scale.at(interval.x))
    top, bottom = (percent(1 - y.scale.at(value)) for value in (interval.high, interval.low))
    return element("line", x1=at, x2=at, y1=top, y2=bottom, class_="range", style=_color(interval.color))


def _dots(x: Axis, y: Axis, line: Series) -> Node:
    drawn: list[Node] = []
    for at, (px, py) in enumerate(line.points):
        cx, cy = percent(x.scale.at(px)), percent(1 - y.scale.at(py))
        if line.dots or line.shape == "dots":
            drawn.append(element("circle", cx=cx, cy=cy, r="3.5", class_="dot"))
        tip = line.tips[at] if line.tips else ""
        if tip:
            drawn.append(element("circle", element("title", tip), cx=cx, cy=cy, r="9", class_="hit", data_tip=tip))
    return element("g", drawn, style=_color(line.color), data_level=line.level) if drawn else None


def _label(x: Axis, label: Label) -> Node:
    at = percent(x.scale.at(label.x))
    line = element("line", x1=at, x2=at, y1="0", y2="100%", class_="drop")
    return [line, element("text", label.text, x=at, y="-6", class_="label")]


def bar_plot(title: str, unit: str, bars: Sequence[Bar], scale: Scale) -> Markup:
    """Horizontal bars under one another, each of one or more parts, on a scale from zero."""
    axis = Axis(unit, scale)
    drawn: list[Node] = [element("title", title)]
    for tick in scale.ticks:
        at = percent(scale.at(tick))
        drawn.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="grid"))
        drawn.append(element("text", axis.text(tick), x=at, y="100%", dy="1.4em", class_="xtick"))
    for row, bar in enumerate(bars):
        drawn.append(_bar(bar, row * BAR_PX + 3, scale))
    picture = element(
        "svg", drawn, class_="marks", role="img", aria_label=title, height=str(BAR_PX * max(len(bars), 1))
    )
    return element(
        "div",
        element("div", picture, class_="plot bars"),
        element("div", unit, class_="xlabel"),
        class_="chart",
    )


def _bar(bar: Bar, top_px: int, scale: Scale) -> Node:
    height_px = BAR_PX - 6
    middle_px = top_px + height_px / 2
    drawn: list[Node] = [element("text", bar.name, x="-8", y=middle_px, dy="0.35em", class_="ytick")]
    start = 0.0
    for color, value, tip in bar.parts:
        left, right = scale.at(start), scale.at(start + value)
        start += value
        if right > left:
            drawn.append(
                element(
                    "rect",
                    element("title", tip),
                    x=percent(left),
                    width=percent(right - left),
                    y=top_px,
                    height=height_px,
                    class_="part faint" if bar.faint else "part",
                    style=_color(color),
                    data_tip=tip,
                )
            )
    end = percent(scale.at(start))
    drawn.append(element("text", bar.text, x=end, y=middle_px, dx="6", dy="0.35em", class_="value"))
    return drawn


def legend(entries: Sequence[tuple[str, str, str | None]], *, kind: str = "swatch") -> Markup:
    """What the colours mean: (name, colour, level). Entries of levels become buttons when the script runs."""
    items = (
        element("li", element("span", class_=kind, style=_color(color)), name, data_pick=level)
        for name, color, level in entries
    )
    return element("ul", join(*items), class_="legend")


def _color(name: str) -> str:
    return f"--c:var(--{name})"
