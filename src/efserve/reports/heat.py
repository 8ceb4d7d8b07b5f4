"""A heat map for matplotlib: named rows and columns, cells in colour, their figures in them where there is room."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS_WITH_TEXT = 160
MOST_NAMES = 24  # along one side; of more only every second, third, ... is written


def heat_map(
    axes: "Axes",
    cells: Mapping[tuple[int, int], float],
    names: tuple[Sequence[str], Sequence[str]],
    text: Callable[[float], str],
    title: str,
    *,
    colors: str = "viridis",
    limits: tuple[float, float] | None = None,
    log: bool = True,
) -> None:
    """Draw cells (row, column) -> value > 0, rows from below; those missing stay grey.

    `names` are those of rows and columns, `text` writes a value; `limits` are the ends of the colours.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    rows, columns = names
    values = np.full((len(rows), len(columns)), np.nan)
    for place, value in cells.items():
        values[place] = value
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    differ = high > low
    norm = (LogNorm if log else Normalize)(low, high if differ else low * 1.01)
    axes.set_facecolor("0.9")
    image = axes.imshow(values, norm=norm, cmap=colors, aspect="auto", origin="lower")
    for axis, labels in ((axes.yaxis, rows), (axes.xaxis, columns)):
        every = -(-len(labels) // MOST_NAMES)
        axis.set_ticks(range(0, len(labels), every), labels[::every])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if values.size <= MOST_CELLS_WITH_TEXT:
        for (row, column), value in cells.items():
            red, green, blue, _ = image.cmap(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                column, row, text(value), ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, label=title, pad=0.01)
    ticks = (np.geomspace if log else np.linspace)(low, high, 4 if differ else 1)
    bar.set_ticks([float(tick) for tick in ticks])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)
