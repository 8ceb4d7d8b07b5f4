"""Tables, remarks and pictures of measured pairs."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from efserve.reports.pairs_plot import plot_pairs
from efserve.reports.pairs_table import pair_lines, pairs_remarks, pairs_table
from made_pairs import PAIR, a_file


def test_on_a_narrow_terminal_the_table_keeps_the_names() -> None:
    printed = io.StringIO()
    Console(file=printed, width=60).print(pairs_table(a_file(), 60))
    lines = printed.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 60
    assert ["model0", "50%", "model0", "50%", "1.04", "1.15", "1.08", "1.50"] in [line.split() for line in lines]


def test_the_table_has_a_line_for_each_two_models_and_fits_a_terminal() -> None:
    content = a_file()
    printed = io.StringIO()
    Console(file=printed, width=80).print(pairs_table(content))
    lines = printed.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[2].split() == [
        *("model0", "50%", "model0", "50%", "1.04", "1.15", "1.08", "1.10-1.30", "1,", "8", "1.50")
    ]
    assert len(lines) == 6
    assert [(line.me, line.you) for line in pair_lines(content.pairs)] == [
        (f"model{me}", f"model{you}") for me in (0, 1) for you in (0, 1)
    ]
    assert pair_lines(content.pairs)[0].mean == pytest.approx(math.sqrt(1.01 * 1.08))


def test_remarks_say_what_to_think_of_the_figures() -> None:
    quiet = a_file()
    assert len(pairs_remarks(quiet)) == 1
    noisy = replace(quiet, pairs=(replace(PAIR, others_pct=60.0), *quiet.pairs))
    assert "! While 1 of 17 were measured, other processes used more than 10%" in pairs_remarks(noisy)[1]
    alone = a_file(models=1)
    assert "Only model0 was measured, beside itself" in pairs_remarks(alone)[1]


@pytest.mark.parametrize(
    ("models", "sizes", "shares"),
    [(1, (1,), (50.0,)), (3, (1, 8, 32), (50.0,)), (12, (1, 8, 32), (20.0, 40.0, 60.0, 80.0))],
)
def test_the_picture_is_a_png(tmp_path: Path, models: int, sizes: tuple[int, ...], shares: tuple[float, ...]) -> None:
    plot_pairs(a_file(models, sizes, shares), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
