"""Plans for people: what each model gets, a bar of shares for each device, and what breaks first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from efserve.planning.plan import Placement, Plan
from efserve.reports.tables import PlainTable

BAR_CELLS = 60
BAR_EDGES = 20  # cells for the device and the sum, beside the bar
LEAST_BAR_CELLS = 20
COLOURS = ("blue", "green", "magenta", "yellow", "cyan", "red", "bright_blue", "bright_green", "bright_magenta")


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What a plan gives one model."""

    model: str
    rate_per_s: float
    slo_ms: float
    partitions: int
    share_pct: float  # of all devices together; a shared partition counts for each of its models
    capacity_per_s: float
    worst_ms: float

    @property
    def utilization(self) -> float:
        """The rate as a part of the capacity."""
        return self.rate_per_s / self.capacity_per_s


def model_figures(plan: Plan) -> list[ModelFigures]:
    """One entry per demand, in the plan's order."""
    figures = []
    for demand in plan.demands:
        mine = [(p, t) for p in plan.placements for t in p.tenants if t.model == demand.model]
        figures.append(
            ModelFigures(
                demand.model,
                demand.rate_per_s,
                demand.slo_ms,
                len(mine),
                sum(placement.share_pct for placement, _ in mine),
                sum(tenant.capacity_per_s for _, tenant in mine),
                max((tenant.worst_ms for _, tenant in mine), default=0.0),
            )
        )
    return figures


def models_table(plan: Plan) -> Table:
    """One line per model; at most 80 columns wide."""
    table = _table(f"{plan.policy}: {len(plan.used_devices)} of {len(plan.devices)} {_kind(plan)}")
    for column in ("model", "req/s", "carries", "load %", "SLO ms", "worst ms", "slack ms", "parts", "share %"):
        first = column == "model"
        table.add_column(column, justify="left" if first else "right", no_wrap=True)
    for figures in model_figures(plan):
        table.add_row(
            Text(_short(figures.model, 18), style=_colours(plan)[figures.model]),
            plain(figures.rate_per_s),
            plain(figures.capacity_per_s),
            f"{100 * figures.utilization:.0f}",
            f"{figures.slo_ms:.4g}",
            f"{figures.worst_ms:.3g}",
            f"{figures.slo_ms - figures.worst_ms:.3g}",
            str(figures.partitions),
            f"{figures.share_pct:.0f}",
        )
    return table


def placements_table(plan: Plan) -> Table:
    """One line per model of each partition; at most 80 columns wide."""
    table = _table("Partitions")
    for column in ("device", "share %", "model", "engine", "batch", "x", "cycle ms", "req/s"):
        table.add_column(column, justify="left" if column in ("device", "model", "engine") else "right", no_wrap=True)
    for placement in ordered(plan):
        for at, tenant in enumerate(placement.tenants):
            table.add_row(
                _short(placement.device, 20) if at == 0 else "",
                f"{placement.share_pct:.3g}" if at == 0 else "",
                Text(_short(tenant.model, 18), style=_colours(plan)[tenant.model]),
                _short(tenant.engine, 10),
                str(tenant.batch),
                str(tenant.processes),
                f"{placement.cycle_ms:.3g}" if at == 0 else "",
                plain(tenant.rate_per_s),
            )
    return table


def device_bars(plan: Plan, width: int) -> Iterator[Text]:
    """A bar per used device: each partition in the colour of its first model, what is free in dots.

    `width` is that of the terminal in cells; in what is left of it by device and sum, bars are 20 to 60 long.
    """
    bar_cells = max(LEAST_BAR_CELLS, min(BAR_CELLS, width - BAR_EDGES))
    colours = _colours(plan)
    for device in plan.used_devices:
        line = Text(f"{_short(device, 14):14} ")
        edge_pct, drawn = 0.0, 0
        for placement in ordered(plan):
            if placement.device != device:
                continue
            edge_pct += placement.share_pct
            cells = round(edge_pct / 100 * bar_cells) - drawn
            drawn += cells
            names = "+".join(tenant.model for tenant in placement.tenants)
            style = f"white on {colours[placement.tenants[0].model]}"
            line.append(f"{names[: max(0, cells - 1)]:{max(0, cells - 1)}}" if cells > 1 else "", style)
            line.append("|" if cells else "", style)
        line.append("." * (bar_cells - drawn))
        line.append(f" {edge_pct:3.0f}%")
        yield line


def breaks_first(plan: Plan) -> str:
    """What a common rise of all rates meets first, and which model comes next."""
    order = sorted(model_figures(plan), key=lambda figures: -figures.utilization)
    if not order:
        return "Nothing is planned."
    first = order[0]
    sentence = (
        f"When all rates rise, {first.model} breaks first: at {1 / first.utilization:.2f} times its rate, "
        f"{plain(first.capacity_per_s)} req/s"
    )
    if len(order) > 1:
        sentence += f"; then {order[1].model} at {1 / order[1].utilization:.2f} times"
    return f"{sentence}."


def plain(value: float) -> str:
    """About three digits or all whole ones, never in exponents: 0.0513, 9.21, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str) -> Table:
    return PlainTable(title)


def ordered(plan: Plan) -> Sequence[Placement]:
    """The placements by device, then the largest first."""
    at = {device.name: number for number, device in enumerate(plan.devices)}
    return sorted(plan.placements, key=lambda placement: (at[placement.device], -placement.share_pct))


def _colours(plan: Plan) -> dict[str, str]:
    return {demand.model: COLOURS[at % len(COLOURS)] for at, demand in enumerate(plan.demands)}


def _kind(plan: Plan) -> str:
    return plan.devices[0].kind if plan.devices else "devices"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 8]}~{text[-7:]}"
