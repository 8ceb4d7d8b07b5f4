"""Plans and sweeps as pictures. Needs the extra `plot`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efserve.planning.plan import Placement, Plan
from efserve.reports.figures import save
from efserve.reports.plan_table import model_figures, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS_IN = 30.0  # inches of devices, above which bars become thinner
LETTERS_PER_PCT = 1.0  # of a name that fit a bar of so many percent

Curve = tuple[str, Sequence[tuple[float, float]]]  # a name, and (req/s, in SLO %) in order of the rates


def plot_plan(plan: Plan, path: Path) -> None:
    """Write a PNG: a bar of shares per device on the left, what each model's partitions carry on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(plan.used_devices), len(plan.demands))
    figure = Figure(figsize=(13, min(MOST_ROWS_IN, 1.6 + 0.42 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    devices, models = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = _colours([demand.model for demand in plan.demands])
    _devices(devices, plan, colours)
    _models(models, plan, colours)
    kind = plan.devices[0].kind if plan.devices else "devices"
    figure.suptitle(f"{plan.policy}: {len(plan.used_devices)} of {len(plan.devices)} {kind}")
    save(figure, path, dpi=130)


def plot_sweep(curves: Sequence[Curve], enough_pct: float, path: Path) -> None:
    """Write a PNG: the part of requests within their SLO, of the model that fares worst, over the total rate."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for at, (name, points) in enumerate(curves):
        rates, within_pct = zip(*points, strict=True) if points else ((), ())
        axes.plot(rates, within_pct, "o-", markersize=3, color=colormaps["tab10"](at % 10), label=name)
    axes.axhline(enough_pct, color="0.4", linewidth=1, linestyle=":")
    axes.set_ylim(max(0.0, enough_pct - 12), 100.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("requests per second, all models together")
    axes.set_ylabel("within SLO, worst model (%)")
    axes.legend(loc="lower left", frameon=False)
    _dress(axes)
    save(figure, path, dpi=130)


def _devices(axes: "Axes", plan: Plan, colours: Mapping[str, tuple[float, ...]]) -> None:
    placed: dict[str, list[Placement]] = {device: [] for device in plan.used_devices}
    for placement in ordered(plan):
        placed[placement.device].append(placement)
    for row, placements in enumerate(placed.values()):
        left_pct = 0.0
        for placement in placements:
            height = 0.8 / len(placement.tenants)
            for at, tenant in enumerate(placement.tenants):  # those that share a partition lie one above the other
                bottom = row - 0.4 + at * height
                axes.barh(
                    bottom,
                    placement.share_pct,
                    height,
                    left=left_pct,
                    align="edge",
                    color=colours[tenant.model],
                    edgecolor="white",
                )
                name = f"{tenant.model} b{tenant.batch}" + (f" x{tenant.processes}" if tenant.processes > 1 else "")
                letters = int(placement.share_pct * LETTERS_PER_PCT)
                axes.text(
                    left_pct + placement.share_pct / 2,
                    bottom + height / 2,
                    name if len(name) <= letters else name[: max(0, letters - 1)],
                    ha="center",
                    va="center",
                    fontsize=7 if len(placement.tenants) == 1 else 6,
                )
            left_pct += placement.share_pct
    axes.set_yticks(range(len(placed)), list(placed))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the device (%)")
    _dress(axes)


def _models(axes: "Axes", plan: Plan, colours: Mapping[str, tuple[float, ...]]) -> None:
    figures = model_figures(plan)
    for row, figure in enumerate(figures):
        load_pct = 100 * figure.utilization
        axes.barh(row, load_pct, 0.8, color=colours[figure.model])
        axes.text(
            2,
            row,
            f"{figure.rate_per_s:,.4g} req/s, up to {figure.worst_ms:.3g} of {figure.slo_ms:.4g} ms",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(figures)), [figure.model for figure in figures])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("load: rate over what the partitions carry (%)")
    _dress(axes)


def _colours(models: Sequence[str]) -> dict[str, tuple[float, ...]]:
    from matplotlib import colormaps

    return {
        model: tuple(colormaps["tab20"]((2 * at + 1) % 20 + (2 * at + 1) // 20 % 2)) for at, model in enumerate(models)
    }


def _dress(axes: "Axes") -> None:
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
