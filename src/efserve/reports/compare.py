"""How people see a comparison: a line per turn while it runs, and the tables of ratios after it."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from efserve.comparison import Comparison, Contender, Turn, ratio
from efserve.reports.tables import PlainTable

_TITLES = {
    "inferences_per_s": "Throughput in infer/s",
    "mean_us": "Mean latency in ms",
    "p50_us": "Median latency in ms",
    "p99_us": "p99 latency in ms",
}
_PERCENTILES = (50, 90, 99, 99.9)
_NAME_COLUMNS = 30


class TurnLines:
    """A line for each server found, and for each turn that is over."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_contender(self, contender: Contender) -> None:
        """Say who takes part."""
        target = contender.target
        server = f"{target.server_name} {target.server_version}".strip()
        self._line(f"{contender.name}: {target.model} on {server} ({contender.options or 'the defaults'})")

    def on_turn(self, number: int, contender: Contender, turn: Turn) -> None:
        """Say how it went."""
        figures = turn.statistics
        latency = f"{figures.latency.p50_us / 1e3:.3f} ms" if figures.latency else "no answer"
        marks = [] if turn.stable else ["unstable"]
        marks += ["client-bound"] * figures.client_bound + ["errors"] * bool(figures.errors)
        self._line(
            f"round {number:>2}  {_short(contender.name):<{_NAME_COLUMNS}} {figures.inferences_per_s:>10.1f}/s "
            f"{latency:>12}  {', '.join(marks)}".rstrip()
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def tables(comparison: Comparison) -> RenderableType:
    """A table per figure, at most 80 columns wide, and remarks."""
    rounds = len(comparison.rounds)
    head = f"Median of {rounds} round{'s' * (rounds > 1)} at load {comparison.load.label}; ratios are to the first."
    parts: list[RenderableType] = [Text(head)]
    for figure in _TITLES:
        parts += [Text(), _table(comparison, figure)]
    parts += [Text(), _merged(comparison)]
    remarks = list(_remarks(comparison))
    return Group(*parts, *([Text(), *remarks] if remarks else []))


def _table(comparison: Comparison, figure: str) -> Table:
    table = PlainTable(tight=True)
    table.add_column(_TITLES[figure], no_wrap=True, min_width=24)
    for heading, width in (("median", 10), ("ratio", 6), ("95 % interval", 14), ("", 8)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for index, contender in enumerate(comparison.contenders):
        found = ratio(comparison, figure, index)
        median = "-" if found.median is None else _figure(figure, found.median)
        compared = ("", "", "")
        if index:
            interval = (
                "-" if found.interval is None else f"{_times(found.interval.low)} to {_times(found.interval.high)}"
            )
            compared = ("-" if found.ratio is None else _times(found.ratio), interval, found.verdict)
        table.add_row(Text(_short(contender.name)), median, *compared)
    return table


def _merged(comparison: Comparison) -> Table:
    table = PlainTable(tight=True)
    table.add_column("All rounds together, in ms", no_wrap=True, min_width=26)
    for percentile in _PERCENTILES:
        table.add_column(f"p{percentile:g}", justify="right", no_wrap=True)
    table.add_column("max", justify="right", no_wrap=True)
    for index, contender in enumerate(comparison.contenders):
        latency_us = comparison.latency_us(index)
        figures = [*(latency_us.percentile(percentile) for percentile in _PERCENTILES), latency_us.greatest]
        cells = [_figure("", value) if latency_us.count else "-" for value in figures]
        table.add_row(Text(_short(contender.name)), *cells)
    return table


def _times(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.0f}" if value < 1000 else ">999"


def _figure(figure: str, value: float) -> str:
    if figure == "inferences_per_s":
        return f"{value:,.1f}"
    return f"{value / 1e3:.3f}" if value < 1e7 else f"{value / 1e3:.0f}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_COLUMNS else f"{name[: _NAME_COLUMNS - 1]}…"


def _remarks(comparison: Comparison) -> Iterable[Text]:
    if len(comparison.rounds) < 2:
        yield Text("One round has no interval: it cannot tell a difference from noise; take more --rounds.")
    for index, contender in enumerate(comparison.contenders):
        turns = [turns[index] for turns in comparison.rounds]
        unstable = sum(not turn.stable for turn in turns)
        if unstable:
            yield Text(f"* {contender.name}: {unstable} of {len(turns)} turns were unstable")
        if any(turn.statistics.client_bound for turn in turns):
            yield Text(f"* {contender.name}: client-bound; the server may do more than the load generator asked")
        errors = sum(sum(turn.statistics.errors.values()) for turn in turns)
        if errors:
            kinds = ", ".join(sorted({kind for turn in turns for kind in turn.statistics.errors}))
            yield Text(f"* {contender.name}: {errors} errors ({kinds})")
