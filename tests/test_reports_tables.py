"""Tables on terminals of every width: numbers are whole, and nothing is wider than the terminal."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from efserve.reports.tables import PlainTable

NAMES = st.text("abcdefgh_", min_size=1, max_size=30)
NUMBERS = st.integers(0, 10**8).map(str)


def printed(table: PlainTable, width: int) -> list[str]:
    """The lines on a terminal of this width."""
    output = io.StringIO()
    Console(file=output, width=width, highlight=False).print(table)
    return output.getvalue().splitlines()


@given(
    st.lists(st.tuples(NAMES, st.lists(NUMBERS, min_size=5, max_size=5)), min_size=1, max_size=4), st.integers(24, 120)
)
def test_numbers_are_never_cut(rows: list[tuple[str, list[str]]], width: int) -> None:
    table = PlainTable("Figures")
    table.add_column("model", overflow="fold")
    for heading in ("req/s", "p50 ms", "p99 ms", "queue", "share %"):
        table.add_column(heading, justify="right")
    for name, numbers in rows:
        table.add_row(Text(name), *numbers)
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    for name, numbers in rows:
        assert set(numbers) <= set(words)
        assert name in "".join(line.strip() for line in lines) or len(name) > 10


def test_a_narrow_terminal_has_a_block_of_lines_for_each_row() -> None:
    table = PlainTable("Figures", tight=True)
    table.add_column("model")
    for heading in ("throughput", "latency", "errors"):
        table.add_column(heading, justify="right")
    table.add_row("a", "1,000.5", "0.25", "0")
    table.add_row("b", "2,000.5", "", "1")
    assert [line.rstrip() for line in printed(table, 34)] == [
        "Figures",
        "model throughput latency errors",
        "a        1,000.5    0.25      0",
        "b        2,000.5              1",
    ]
    assert [line.rstrip() for line in printed(table, 24)] == [
        "Figures",
        "model       a",
        "throughput  1,000.5",
        "latency     0.25",
        "errors      0",
        "",
        "model       b",
        "throughput  2,000.5",
        "errors      1",
    ]
