"""Measured pairs as a picture: slowdowns of each model beside each other, a map for each share. Needs extra `plot`."""

import math
from collections.abc import Sequence
from pathlib import Path

from efserve.pairs import MeasuredPair, Pairs
from efserve.reports.figures import save
from efserve.reports.heat import MOST_NAMES, heat_map
from efserve.reports.pairs_table import pairs_title

Entry = tuple[str, int]  # a model and its batch; batch 0: the worst of all


def plot_pairs(pairs: Pairs, path: Path) -> None:
    """Write a PNG: rows are slowed down, columns are beside them; at many models only the worst batches are drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = sorted({(pair.my_pct, pair.your_pct) for pair in pairs.pairs})
    rows = _entries([(pair.me, pair.my_batch) for pair in pairs.pairs])
    columns = _entries([(pair.you, pair.your_batch) for pair in pairs.pairs])
    across = math.ceil(math.sqrt(len(splits)))
    down = -(-len(splits) // across)
    side_in = max(2.6, 0.5 * max(len(rows), len(columns)))
    figure = Figure(figsize=(max(6.0, across * (side_in + 2.2)), down * (side_in + 0.9) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    worst = max(pair.slowdown for pair in pairs.pairs)
    for at, (my_pct, your_pct) in enumerate(splits):
        axes = grid[at // across][at % across]
        of_split = [pair for pair in pairs.pairs if (pair.my_pct, pair.your_pct) == (my_pct, your_pct)]
        heat_map(
            axes,
            _cells(of_split, rows, columns),
            (_names(rows), _names(columns)),
            lambda value: f"{value:.2f}",
            "slowdown",
            colors="YlOrRd",
            limits=(1.0, max(1.1, worst)),
            log=False,
        )
        axes.set_ylabel(f"slowed down, on {my_pct:.3g} %")
        axes.set_xlabel(f"beside it, on {your_pct:.3g} %")
        axes.tick_params(axis="x", labelrotation=0 if len(columns) <= 4 else 45)
    for at in range(len(splits), down * across):
        grid[at // across][at % across].set_visible(False)
    figure.suptitle(pairs_title(pairs), fontsize=11)
    save(figure, path)


def _entries(found: Sequence[Entry]) -> list[Entry]:
    """In the order of names and batches; without the batches where those were too many to name."""
    entries = sorted(set(found))
    return entries if len(entries) <= MOST_NAMES else sorted({(name, 0) for name, _ in entries})


def _names(entries: Sequence[Entry]) -> list[str]:
    return [f"{name}, {batch}" if batch else name for name, batch in entries]


def _cells(
    pairs: Sequence[MeasuredPair], rows: Sequence[Entry], columns: Sequence[Entry]
) -> dict[tuple[int, int], float]:
    places = {entry: at for at, entry in enumerate(rows)}, {entry: at for at, entry in enumerate(columns)}
    cells: dict[tuple[int, int], float] = {}
    for pair in pairs:
        row = places[0].get((pair.me, pair.my_batch), places[0].get((pair.me, 0), -1))
        column = places[1].get((pair.you, pair.your_batch), places[1].get((pair.you, 0), -1))
        cells[row, column] = max(pair.slowdown, cells.get((row, column), 0.0))
    return cells
