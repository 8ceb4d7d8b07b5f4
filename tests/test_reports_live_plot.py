"""The plot in the terminal: dots where the figures are, a block that is drawn over itself, lines elsewhere."""

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench_results import HOSTILE, closed_result, hostile_result
from efserve.records import BenchResult
from efserve.reports.live_plot import ROWS, LivePlot, braille, framed, plots
from efserve.stats import WindowFigures

BLANK = "\u2800"


def dots(drawn: list[str]) -> int:
    return sum((ord(letter) - 0x2800).bit_count() for line in drawn for letter in line)


def test_a_rising_line_goes_from_corner_to_corner() -> None:
    drawn = braille([[(0.0, 0.0), (1.0, 1.0)]], 4, 1.0)
    assert len(drawn) == ROWS
    assert [at for at, letter in enumerate(drawn[0]) if letter != BLANK] == [3]
    assert [at for at, letter in enumerate(drawn[-1]) if letter != BLANK] == [0]
    assert all(line != 4 * BLANK for line in drawn)


def test_a_single_point_is_one_dot() -> None:
    assert dots(braille([[(0.0, 5.0)]], 10, 5.0)) == 1


@given(st.lists(st.floats(0, 1e9), max_size=50), st.integers(1, 60))
def test_any_figures_fit_the_frame(values: list[float], width: int) -> None:
    drawn = framed([[(float(at), value) for at, value in enumerate([*values, math.nan])]], width)
    assert len(drawn) == ROWS
    assert len({len(line) for line in drawn}) == 1
    assert (sum(dots([line.partition("\u2524")[2]]) for line in drawn) > 0) == bool(values)


def test_plots_fit_their_width() -> None:
    result = hostile_result()
    assert max(map(len, plots([1.0, 2.0, 3.0], result.levels, 80))) <= 80
    assert "p50 and p99 by level (ms)" in plots([], (), 80)[0]


def run(result: BenchResult, console: Console) -> str:
    plot = LivePlot(console, rows_per_request=1)
    plot.on_target(result.target)
    for level in result.levels:
        plot.on_level_start(level.record.load)
        plot.on_window(level.record.load, 1, WindowFigures(10, 100.0, 1000.0))
        plot.on_level(level)
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # the StringIO of the tests


def screen(text: str) -> list[str]:
    """What stands on a terminal that knows the few controls that are used here."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d*[AJ]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines = [*lines[:row], ""]
        elif part != "\r":
            lines[row] = part
    return lines


def test_a_block_is_drawn_over_itself() -> None:
    text = run(closed_result(), Console(file=io.StringIO(), force_terminal=True, width=80, height=40))
    lines = screen(text)
    assert max(map(len, lines)) < 80
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]
    assert lines[6] == ""
    assert lines[7].startswith("infer/s over time")
    assert len([line for line in lines if "\u2524" in line]) == ROWS
    assert lines[-2].split() == ["1", "4"]
    assert lines[-1] == ""


@pytest.mark.parametrize("size", [(40, 40), (80, 10)])
def test_a_small_terminal_has_lines_only(size: tuple[int, int]) -> None:
    text = run(closed_result(), Console(file=io.StringIO(), force_terminal=True, width=size[0], height=size[1]))
    assert "\u2524" not in text


def test_a_file_has_lines_only() -> None:
    text = run(closed_result(), Console(file=io.StringIO(), width=80))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2 + 4


def test_names_steer_no_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40, no_color=True)
    text = run(hostile_result(), console)
    assert HOSTILE not in text
    assert "\x07" not in text
