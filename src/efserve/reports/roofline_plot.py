"""The roofline as a picture: ceilings of the device, and each model's points over the batch. Needs the extra `plot`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efserve.reports.figures import save
from efserve.roofline import Ceilings, ModelRoofline, RooflinePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

GIGA = 1e9
ROOF = "0.25"
MANY = 1000  # from this range on, powers of ten are enough ticks
MARKERS = "osD^vP*X"
LABEL_OFFSETS = ((0, 7), (0, -13), (9, 3), (-9, 3), (9, -9), (-9, -9), (0, 17), (0, -23))  # points; the first that fits


def plot_roofline(ceilings: Ceilings, models: Sequence[ModelRoofline], path: Path) -> None:
    """Write a PNG on log-log axes: hollow marks are upper bounds, filled ones what was measured, joined by a line."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _limit(axes, ceilings, models)
    along, level = _draw_roofs(axes, ceilings)
    colors = colormaps["tab10" if len(models) <= 10 else "tab20"].colors  # type: ignore[attr-defined]  # a listed map
    names = _names(models)
    for at, model in enumerate(models):
        _draw_model(axes, model, names[at], colors[at % len(colors)], MARKERS[at % len(MARKERS)])
    axes.set_xlabel("operations per byte (elementwise operators fused)")
    axes.set_ylabel("Gop/s")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    _plain_ticks(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="model")
    figure.suptitle(f"{ceilings.device}, {ceilings.part}")
    axes.set_title(
        "hollow: most that the roof allows; filled: measured; the number is the batch", fontsize=9, color="0.35"
    )
    figure.canvas.draw()  # sizes of texts are known from here on
    _turn(axes, along)
    _label_batches(axes, models, [*along, *level])
    save(figure, path)


def _names(models: Sequence[ModelRoofline]) -> list[str]:
    """Models by name, with the engine where a model is there on several."""
    names = [model.model for model in models]
    return [f"{m.model}.{m.engine}" if names.count(m.model) > 1 else m.model for m in models]


def _limit(axes: "Axes", ceilings: Ceilings, models: Sequence[ModelRoofline]) -> None:
    """Room for all points and for the ridge."""
    points = [point for model in models for point in model.points]
    intensities = [ceilings.ridge, *(point.intensity for point in points)]
    left, right = min(intensities) / 3, max(intensities) * 4
    top = max(ceiling.per_s for ceiling in ceilings.peaks.values()) / GIGA * 2
    lowest = [left * ceilings.memory.per_s / GIGA, *(heights(point)[-1] / 2 for point in points)]
    axes.set_xlim(left, right)
    axes.set_ylim(min(lowest), top)


def heights(point: RooflinePoint) -> list[float]:
    """Gop/s of a point: its upper bound, then what was measured, where it was."""
    measured = point.measured_operations_per_s
    return [point.most_operations_per_s / GIGA, *([] if measured is None else [measured / GIGA])]


def _draw_roofs(axes: "Axes", ceilings: Ceilings) -> tuple[list["Text"], list["Text"]]:
    """A slope for each bandwidth up to its ridge, a level for each peak from there on; names of slopes, of levels."""
    left, right = axes.get_xlim()
    slopes = [("memory", ceilings.memory, "-")]
    if ceilings.cache is not None:
        slopes.append(("cache", ceilings.cache, "--"))
    top = max(ceiling.per_s for ceiling in ceilings.peaks.values())
    along, level = list["Text"](), list["Text"]()
    for name, ceiling, style in slopes:
        gigabytes = ceiling.per_s / GIGA
        axes.plot([left, top / ceiling.per_s], [left * gigabytes, top / GIGA], style, color=ROOF, linewidth=1.4)
        start = max(left, axes.get_ylim()[0] / gigabytes) * 1.1
        text = f"{name} {gigabytes:.3g} GB/s"
        place: dict[str, Any] = {"va": "bottom", "rotation_mode": "anchor", "fontsize": 8, "color": ROOF}
        along.append(axes.text(start, start * gigabytes * 1.04, text, **place))
    steepest = max(ceiling.per_s for _, ceiling, _ in slopes)
    for precision, ceiling in ceilings.peaks.items():
        height = ceiling.per_s / GIGA
        axes.plot([ceiling.per_s / steepest, right], [height] * 2, "-", color=ROOF, linewidth=1.4)
        text = f"{precision} {height:.3g} Gop/s"
        place = {"textcoords": "offset points", "ha": "right", "fontsize": 8, "color": ROOF}
        level.append(axes.annotate(text, (right, height), (-2, 3), **place))
    return along, level


def _turn(axes: "Axes", labels: Iterable["Text"]) -> None:
    """Lays the names of slopes along them: on log-log axes all slopes rise at the same angle."""
    (left, below), (right, above) = axes.transData.transform([(1, 1), (10, 10)])
    for label in labels:
        label.set_rotation(float(np.degrees(np.arctan2(above - below, right - left))))


def _draw_model(axes: "Axes", model: ModelRoofline, name: str, color: tuple[float, ...], marker: str) -> None:
    xs = [point.intensity for point in model.points]
    axes.plot(
        xs, [heights(point)[0] for point in model.points], marker, color=color, markerfacecolor="none", markersize=6,
        linestyle=":", linewidth=0.8, label=name,
    )  # fmt: skip
    measured = [(point.intensity, heights(point)[1]) for point in model.points if len(heights(point)) > 1]
    if measured:
        axes.plot(*zip(*measured, strict=True), marker, color=color, markersize=5, linestyle="-", linewidth=1)


def _plain_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1,) if high / low > MANY else (1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _label_batches(axes: "Axes", models: Sequence[ModelRoofline], placed: Sequence["Text"]) -> None:
    """The batch beside the first and the last point of each model, wherever it covers nothing; else not at all."""
    taken = [text.get_window_extent() for text in placed]
    for model in models:
        for point in model.points:
            taken += [_mark(axes, point.intensity, height) for height in heights(point)]
    for x, y, name in _ends(models):
        for offset in LABEL_OFFSETS:
            label = axes.annotate(
                name, (x, y), offset, textcoords="offset points", ha="center", fontsize=7, color="0.25"
            )
            box = label.get_window_extent()
            if (
                axes.bbox.contains(box.x0, box.y0)
                and axes.bbox.contains(box.x1, box.y1)
                and not box.count_overlaps(taken)
            ):
                taken.append(box)
                break
            label.remove()


def _mark(axes: "Axes", x: float, y: float) -> "Bbox":
    """The pixels that a mark covers."""
    from matplotlib.transforms import Bbox

    left, below = axes.transData.transform((x, y))
    return Bbox.from_extents(left - 5, below - 5, left + 5, below + 5)


def _ends(models: Sequence[ModelRoofline]) -> Iterator[tuple[float, float, str]]:
    """Where the first and the last batch of each model lie, at their lowest mark, and the batch."""
    for model in models:
        for point in (model.points[0], *model.points[1:][-1:]):
            yield point.intensity, heights(point)[-1], str(point.batch)
