"""A plot in the terminal while a benchmark runs: throughput over time, and latency percentiles over the levels.

Drawn after each window by one write of plain text (well under a millisecond); where the console is no terminal, or a
small one, the lines alone are written.
"""

import math
from collections.abc import Sequence

from rich.console import Console

from efserve.records import LevelResult, Load, Target
from efserve.reports.bench import LiveLines, level_line, start_line, window_line
from efserve.reports.levels import plain, short_name
from efserve.reports.scale import amount, tick_text
from efserve.stats import WindowFigures

ROWS = 8  # of letters; each has 4 rows of dots
LEAST_COLUMNS, LEAST_LINES = 60, 16
AXIS_COLUMNS = 9  # numbers and a line on the left of each plot
MOST_WINDOWS = 400  # the last ones, in the plot over time

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of a dot, by row and column in its letter

Point = tuple[float, float]


class LivePlot:
    """An observer of a benchmark that draws under the lines of `LiveLines`."""

    def __init__(self, console: Console, rows_per_request: int) -> None:
        self._console = console
        self._rows = rows_per_request
        self._lines = LiveLines(console, rows_per_request)
        self._drawn = 0  # lines below which the cursor stands
        self._rates: list[float] = []
        self._levels: list[LevelResult] = []

    def __repr__(self) -> str:
        return f"<LivePlot of {len(self._rates)} windows, {len(self._levels)} levels>"

    @property
    def _draws(self) -> bool:
        console = self._console
        return console.is_terminal and console.width >= LEAST_COLUMNS and console.height >= LEAST_LINES

    def on_target(self, target: Target) -> None:
        """Say what is measured."""
        self._lines.on_target(target)

    def on_level_start(self, load: Load) -> None:
        """The level is warming up."""
        if self._draws:
            self._draw(start_line(load))
        else:
            self._lines.on_level_start(load)

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None:
        """A window more in the plot over time."""
        self._rates = [*self._rates[1 - MOST_WINDOWS :], figures.requests_per_s * self._rows]
        if self._draws:
            self._draw(window_line(load, number, figures, self._rows))
        else:
            self._lines.on_window(load, number, figures)

    def on_level(self, result: LevelResult) -> None:
        """A level more in the plot over levels, and its line above."""
        self._levels.append(result)
        if self._draws:
            self._draw("", above=level_line(result))
        else:
            self._lines.on_level(result)

    def _draw(self, current: str, above: str = "") -> None:
        block = [current, *plots(self._rates, self._levels, self._console.width)]
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        lines = [above, *block] if above else block
        text = "\n".join(plain(line)[: self._console.width - 1] for line in lines)
        self._console.file.write(f"\r{back}\x1b[J{text}\n")
        self._console.file.flush()
        self._drawn = len(block)


def plots(rates: Sequence[float], levels: Sequence[LevelResult], columns: int) -> list[str]:
    """The lines of both plots side by side, at most `columns` wide."""
    width = (columns - 3) // 2 - AXIS_COLUMNS
    over_time = list(enumerate(rates))
    answered = [(at, level) for at, level in enumerate(levels) if level.statistics.latency is not None]
    tails = [(float(at), level.statistics.latency.p99_us / 1e3) for at, level in answered if level.statistics.latency]
    middles = [(float(at), level.statistics.latency.p50_us / 1e3) for at, level in answered if level.statistics.latency]
    left = framed([[(float(at), rate) for at, rate in over_time]], width)
    right = framed([middles, tails], width)
    head = f"{'infer/s over time':<{width + AXIS_COLUMNS}}  p50 and p99 by level (ms)"
    foot = f"{'':<{width + AXIS_COLUMNS}}  {_ends(levels, width)}"
    body = [f"{one:<{width + AXIS_COLUMNS}}  {other}" for one, other in zip(left, right, strict=True)]
    return [head, *body, foot.rstrip()]


def _ends(levels: Sequence[LevelResult], width: int) -> str:
    """The names of the first and the last level, under the ends of their plot."""
    if not levels:
        return ""
    first, last = short_name(levels[0].record), short_name(levels[-1].record)
    gap = width - len(first) - len(last)
    return " " * AXIS_COLUMNS + (first if len(levels) == 1 or gap < 1 else first + " " * gap + last)


def framed(lines: Sequence[Sequence[Point]], width: int) -> list[str]:
    """Lines drawn from zero to their greatest value, with three numbers beside them."""
    top = max((y for line in lines for _, y in line), default=0.0)
    numbers = {0: _short(top), ROWS // 2: _short(top / 2), ROWS - 1: "0"} if top > 0 else {ROWS - 1: "0"}
    drawn = braille(lines, width, top)
    return [f"{numbers.get(row, ''):>{AXIS_COLUMNS - 2}} ┤{letters}" for row, letters in enumerate(drawn)]


def _short(value: float) -> str:
    """A number in at most seven letters."""
    if value >= 1e6:
        return tick_text(float(f"{value:.3g}"))
    return amount(value) if value >= 0.01 else f"{value:.2g}" if value > 1e-9 else "0"


def braille(lines: Sequence[Sequence[Point]], width: int, top: float) -> list[str]:
    """`ROWS` strings of `width` letters, in which neighbouring points of each line are joined. 2 x 4 dots a letter."""
    cells = [[0] * width for _ in range(ROWS)]
    last_x = max((x for line in lines for x, _ in line), default=0.0)
    for line in lines:
        places = [
            (
                round((2 * width - 1) * (x / last_x if last_x else 0)),
                round((4 * ROWS - 1) * (1 - y / top if top else 1)),
            )
            for x, y in line
            if math.isfinite(y)
        ]
        for at, (column, row) in enumerate(places):
            before = places[max(at - 1, 0)]
            steps = max(abs(column - before[0]), abs(row - before[1]), 1)
            for step in range(steps + 1):
                x = before[0] + round((column - before[0]) * step / steps)
                y = before[1] + round((row - before[1]) * step / steps)
                cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(_BLANK + bits) for bits in row) for row in cells]
