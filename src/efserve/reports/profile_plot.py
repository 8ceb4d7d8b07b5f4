"""Profiles as a picture: latency and throughput over the batch, a line per share, and both as heat maps.

Needs the extra `plot`.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from efserve.errors import UsageError
from efserve.profiles import ProfileFacts, ProfileRow, best_by_throughput, best_under_slo, knees
from efserve.reports.figures import save
from efserve.reports.heat import MOST_CELLS_WITH_TEXT, heat_map
from efserve.reports.profile_table import decimals, profile_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LEGEND_LINES = 8
MOST_TICKS = 16  # on the axis of batches


def require_matplotlib() -> None:
    """Raise UsageError when matplotlib is not installed; loads nothing."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'efserve[plot]'")


def plot_profile(facts: ProfileFacts, rows: Sequence[ProfileRow], slo_ms: float | None, path: Path) -> None:
    """Write a PNG: latency (p50 and p99) and throughput over the batch on a log2 axis; below, batch by share.

    A profile of one share has no heat maps: they would say the same again. `rows` are in ascending order of their keys.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [(share_pct, list(group)) for share_pct, group in groupby(rows, key=lambda row: row.share_pct)]
    batches = sorted({row.batch for row in rows})
    with_heat = len(shares) > 1
    below_in = min(8.0, 1.6 + 0.34 * len(shares)) if with_heat else 0.0
    figure = Figure(figsize=(max(11.0, min(22.0, 0.9 * len(batches) + 4)), 4.2 + below_in), layout="constrained")
    FigureCanvasAgg(figure)
    if with_heat:
        grid = figure.subplots(2, 2, height_ratios=(4.2, below_in))
        latency, throughput = grid[0]
        _heat_maps(grid[1][0], grid[1][1], rows, slo_ms)
    else:
        latency, throughput = figure.subplots(1, 2)
    _lines(latency, throughput, shares)
    if slo_ms is not None:
        latency.axhline(slo_ms, color="firebrick", linewidth=1, linestyle=":", label=f"SLO {slo_ms:g} ms")
    for axes in (latency, throughput):
        _dress(axes, batches)
    lines, names = latency.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(5, len(names)), frameon=False)
    figure.suptitle(profile_title(facts))
    save(figure, path)


def _lines(latency: "Axes", throughput: "Axes", shares: Sequence[tuple[float, list[ProfileRow]]]) -> None:
    from matplotlib import colormaps

    few = len(shares) <= MOST_LEGEND_LINES  # else p99 lines would only blur the picture
    every = -(-len(shares) // MOST_LEGEND_LINES)
    for at, (share_pct, of_share) in enumerate(shares):
        color = colormaps["viridis"](0.85 * at / max(1, len(shares) - 1))
        batches = [row.batch for row in of_share]
        label = _share_name(share_pct, of_share[0]) if at % every == 0 or at == len(shares) - 1 else "_nolegend_"
        latency.plot(batches, [row.p50_ms for row in of_share], "o-", color=color, markersize=4, label=label)
        if few:
            latency.plot(batches, [row.p99_ms for row in of_share], "_--", color=color, linewidth=1)
        throughput.plot(
            batches, [row.throughput_per_s for row in of_share], "o-", color=color, markersize=4, label=label
        )
    latency.set_yscale("log")
    latency.set_ylabel("latency of a batch (ms)")
    latency.set_title("p50 solid, p99 dashed" if few else "p50", fontsize=10, color="0.35")
    throughput.set_ylim(bottom=0)
    throughput.set_ylabel("throughput (inferences/s)")


def _share_name(share_pct: float, row: ProfileRow) -> str:
    if row.sm_count is not None:
        return f"{share_pct:.3g} % ({row.sm_count} SMs)"
    return f"{share_pct:.3g} % ({row.cores} {'core' if row.cores == 1 else 'cores'})"


def _heat_maps(latency: "Axes", throughput: "Axes", rows: Sequence[ProfileRow], slo_ms: float | None) -> None:
    """p99 latency and throughput, batch by share; the best cells framed, the knee of each batch dotted."""
    shares, batches = sorted({row.share_pct for row in rows}), sorted({row.batch for row in rows})
    names = [f"{share:.3g} %" for share in shares], [str(batch) for batch in batches]
    places = {row.key: (shares.index(row.share_pct), batches.index(row.batch)) for row in rows}
    for axes, name, of_row, text in (
        (latency, "p99 latency (ms)", lambda row: row.p99_ms, decimals),
        (throughput, "throughput (inferences/s)", lambda row: row.throughput_per_s, _short),
    ):
        cells = {places[row.key]: value for row in rows if (value := _value(row, of_row)) is not None}
        heat_map(axes, cells, names, text, name, colors="viridis_r" if axes is latency else "viridis")
        axes.set_xlabel("batch (rows)")
        axes.set_ylabel("share")
    best = best_by_throughput(rows)
    under_slo = None if slo_ms is None else best_under_slo(rows, slo_ms)
    for row, color in ((best, "black"), (under_slo, "firebrick")):
        if row is not None:
            _frame(throughput, places[row.key], color)
    found = knees(rows)
    title = "framed: most" + ("" if slo_ms is None else ", in red within the SLO")
    if found is not None:
        small = len(shares) * len(batches) <= MOST_CELLS_WITH_TEXT
        for batch, share in found.by_batch.items():
            y = shares.index(share) + (0.36 if small else 0.0)
            throughput.plot(batches.index(batch), y, "o", color="white", markeredgecolor="black", markersize=4)
        title += "; dots: the knee of each batch"
    throughput.set_title(title, fontsize=10, color="0.35")


def _value(row: ProfileRow, of_row: Callable[[ProfileRow], float]) -> float | None:
    value = of_row(row)
    return value if value > 0 else None


def _frame(axes: "Axes", place: tuple[int, int], color: str) -> None:
    from matplotlib.patches import Rectangle

    y, x = place
    axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=color, linewidth=2))


def _short(value: float) -> str:
    """Three digits and a unit: 35.7k, 1.20M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _spread(batches: Sequence[int]) -> list[int]:
    """Those of the batches that have room for their names on a logarithmic axis."""
    apart = (batches[-1] / batches[0]) ** (1 / MOST_TICKS)
    ticks = [batches[0]]
    for batch in batches[1:]:
        if batch >= ticks[-1] * apart:
            ticks.append(batch)
    return ticks


def _dress(axes: "Axes", batches: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    ticks = _spread(batches)
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.minorticks_off()
    axes.set_xlabel("batch (rows)")
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
