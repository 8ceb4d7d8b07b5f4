"""Placements as a table: what was asked, what was obtained."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from efserve.frontend.service import Placement
from efserve.reports.placement_table import is_worth_showing, placements_table

PLAIN = Placement("m", "1", 0, 4242, "READY", 100 * 2**20, ())
PINNED = replace(PLAIN, cores=(0, 1, 2, 5), share_pct=50, obtained_pct=50)
ON_GPU = replace(PLAIN, device="GPU-a", share_pct=40, obtained_pct=39.4, sm_count=52, means="mps")


def shown(placement: Placement, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(placements_table([placement]))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("placement", "says"),
    [
        (PLAIN, "m/1    4242  cpu     -      any core  100 MiB"),
        (PINNED, "50 %   cores 0-2,5 (50 %)  100 MiB"),
        (ON_GPU, "GPU-a   40 % by mps  52 SMs (39.4 %)"),
        (replace(PLAIN, state="STARTING"), "starting"),
        (replace(PLAIN, memory_limit_bytes=50 * 2**20), "100 of 50 MiB"),
        (replace(ON_GPU, memory_limit_bytes=2**30), "100 MiB on the host, 1024 MiB there"),
        (replace(ON_GPU, sm_count=0, share_pct=0, obtained_pct=0), "the device"),
    ],
)
def test_a_placement_is_a_row(placement: Placement, says: str) -> None:
    assert says in shown(placement)


def test_a_narrow_terminal_loses_nothing() -> None:
    lines = shown(replace(ON_GPU, device="GPU-12345678-1234-1234-1234-123456789012"), width=60)
    assert "123456789012" in lines.replace("\n", "").replace(" ", "")
    assert max(map(len, lines.splitlines())) <= 60


def test_what_everybody_expects_is_not_shown() -> None:
    assert not is_worth_showing([PLAIN])
    assert is_worth_showing([PLAIN, PINNED])
    assert is_worth_showing([ON_GPU])
    assert is_worth_showing([replace(PLAIN, memory_limit_bytes=1)])
