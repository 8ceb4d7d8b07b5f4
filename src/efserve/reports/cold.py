"""How people see cold starts: a line for each, and the table of their phases."""

from collections.abc import Sequence
from statistics import median

from rich.console import RenderableType

from efserve.cold_starts import PHASES, ColdResult, ColdStart
from efserve.reports.tables import PlainTable


def start_line(number: int, start: ColdStart) -> str:
    """One start that is over."""
    what = "first start" if number == 0 else f"start {number}"
    return f"{what:>12}: ready after {start.ready_s:.3f} s, first inference {start.first_ms:.2f} ms"


def cold_table(result: ColdResult) -> RenderableType:
    """Median and range of each phase over the starts, beside the first one."""
    table = PlainTable()
    table.add_column("", overflow="fold")
    for column in ("median", "least", "most", "%", "first"):
        table.add_column(column, justify="right")
    whole = median(start.ready_s for start in result.starts)
    for field, words in PHASES.items():
        values = [float(getattr(start, field)) for start in result.starts]
        share = f"{100 * median(values) / whole:.0f}"
        table.add_row(words, *_spread(values, 1e3), share, f"{1e3 * getattr(result.first, field):.0f}")
    ready = [start.ready_s for start in result.starts]
    table.add_row("start to READY, ms", *_spread(ready, 1e3), "100", f"{1e3 * result.first.ready_s:.0f}", style="bold")
    for words, field in (("first inference, ms", "first_ms"), ("later ones, ms", "warm_ms")):
        values = [float(getattr(start, field)) for start in result.starts]
        table.add_row(words, *(f"{x:.2f}" for x in _three(values)), "", f"{getattr(result.first, field):.2f}")
    return table


def _spread(values: Sequence[float], factor: float) -> tuple[str, ...]:
    return tuple(f"{factor * value:.0f}" for value in _three(values))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)
