"""Profiles as a picture: latency and throughput over the batch, one line per share. Needs the extra `plot`."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from efserve.errors import UsageError
from efserve.profiles import ProfileFacts, ProfileRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LEGEND_LINES = 8


def require_matplotlib() -> None:
    """Raise UsageError when matplotlib is not installed; loads nothing."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'efserve[plot]'")


def plot_profile(facts: ProfileFacts, rows: Sequence[ProfileRow], slo_ms: float | None, path: Path) -> None:
    """Write a PNG: latency (p50 and p99) on the left, throughput on the right, over the batch on a log2 axis.

    `rows` are in ascending order of (cores, batch).
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    latency, throughput = figure.subplots(1, 2)
    shares = [(cores, list(group)) for cores, group in groupby(rows, key=lambda row: row.cores)]
    few = len(shares) <= MOST_LEGEND_LINES  # else p99 lines would only blur the picture
    every = -(-len(shares) // MOST_LEGEND_LINES)
    for at, (cores, of_share) in enumerate(shares):
        color = colormaps["viridis"](0.85 * at / max(1, len(shares) - 1))
        batches = [row.batch for row in of_share]
        name = f"{of_share[0].share_pct:g} % ({cores} {'core' if cores == 1 else 'cores'})"
        label = name if at % every == 0 or at == len(shares) - 1 else "_nolegend_"
        latency.plot(batches, [row.p50_ms for row in of_share], "o-", color=color, markersize=4, label=label)
        if few:
            latency.plot(batches, [row.p99_ms for row in of_share], "--", color=color, linewidth=1)
        throughput.plot(
            batches, [row.throughput_per_s for row in of_share], "o-", color=color, markersize=4, label=label
        )
    latency.set_yscale("log")
    latency.set_ylabel("latency of a batch (ms)")
    latency.set_title("p50 solid, p99 dashed" if few else "p50", fontsize=10, color="0.35")
    throughput.set_ylim(bottom=0)
    throughput.set_ylabel("throughput (inferences/s)")
    if slo_ms is not None:
        latency.axhline(slo_ms, color="firebrick", linewidth=1, linestyle=":", label=f"SLO {slo_ms:g} ms")
    for axes in (latency, throughput):
        _dress(axes, sorted({row.batch for row in rows}))
    figure.legend(*latency.get_legend_handles_labels(), loc="outside right upper", title="share", frameon=False)
    figure.suptitle(
        f"{facts.model} {facts.version}, {facts.engine_version}, {facts.cpu_model}, {facts.total_cores} cores"
    )
    figure.savefig(path, dpi=140)


def _dress(axes: "Axes", batches: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_xlabel("batch (rows)")
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
