"""The tables of a comparison as people see them."""

import io
from dataclasses import replace

from rich.console import Console

from comparisons import comparison, turn
from efserve.comparison import Comparison
from efserve.reports.compare import TurnLines, tables


def shown(result: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_figure_has_its_table() -> None:
    text = shown(comparison([(turn(1000, 8000), turn(2000, 8000)), (turn(1100, 8100), turn(2200, 8000))]))
    assert text.startswith("Median of 2 rounds at load 8; ratios are to the first.\n\n")
    throughput, _, _, p99, merged = text.split("\n\n")[1:]
    first, second = throughput.splitlines()[1:]
    assert first.split() == ["first", "1,050.0"]
    assert second.split() == ["second", "2,100.0", "2.000", "2.000", "to", "2.000", "+100.0", "%"]
    assert p99.splitlines()[0].startswith("p99 latency in ms")
    assert p99.splitlines()[2].split()[-1] == "noise"
    assert merged.splitlines()[0].split()[-5:] == ["p50", "p90", "p99", "p99.9", "max"]
    assert merged.splitlines()[2].split() == ["second", *["8.000"] * 5]


def test_long_names_and_numbers_fit_80_columns() -> None:
    rounds = [(turn(9000, 10**8), turn(8000, 10**8)), (turn(10, 10**8), turn(9000, 123))]
    text = shown(comparison(rounds, ["http://some.very.long.host.name.example:8000", "b"]))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text
    assert " 100000 " in text
    assert "to >999" in text


def test_what_the_reader_must_know_is_below() -> None:
    good = turn(10)
    bad = replace(good, stable=False, statistics=replace(good.statistics, client_bound=True, errors={"http 503": 3}))
    text = shown(comparison([(good, bad)]))
    assert "One round has no interval" in text
    assert "* second: 1 of 1 turns were unstable" in text
    assert "* second: client-bound" in text
    assert "* second: 3 errors (http 503)" in text
    assert "* first" not in text


def test_nothing_answered() -> None:
    text = shown(comparison([(turn(0), turn(0))] * 2))
    assert "-" in text


def test_a_line_per_turn() -> None:
    console = Console(file=io.StringIO(), width=80)
    result = comparison([(turn(10, 1500), turn(0))])
    lines = TurnLines(console)
    lines.on_contender(result.contenders[0])
    for contender, single in zip(result.contenders, result.rounds[0], strict=True):
        lines.on_turn(1, contender, single)
    assert isinstance(console.file, io.StringIO)
    first, second, third = console.file.getvalue().splitlines()
    assert first == "first: echo on test 1 (the defaults)"
    assert second.split() == ["round", "1", "first", "10.0/s", "1.500", "ms"]
    assert third.split() == ["round", "1", "second", "0.0/s", "no", "answer"]
