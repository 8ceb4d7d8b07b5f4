"""The comparison of two results in the terminal, at most 80 columns wide."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from efserve.reports.differences import CHANCE, DRIFT, LevelDifferences, RunDifferences, change, interval_text
from efserve.reports.levels import plain
from efserve.reports.scale import amount
from efserve.reports.tables import PlainTable

STYLES = {"better": "green", "worse": "red", "noise": "dim", "unclear": "dim"}


def differences_table(found: RunDifferences, first: str, second: str) -> RenderableType:
    """Level by level: both figures, the change with its interval, the verdict; then what to know of them."""
    return Group(Text(plain(f"{second} against {first}"), style="bold"), *_body(found, first, second))


def _body(found: RunDifferences, first: str, second: str) -> Iterable[RenderableType]:
    for line in found.setup:
        yield Text(plain(f"  {line}"))
    if found.levels:
        yield _table(found)
    else:
        yield Text("No level is in both results.")
    for name, only in ((first, found.only_first), (second, found.only_second)):
        if only:
            yield Text(plain(f"Only in {name}: {', '.join(only)}"))
    for level in found.levels:
        if any(level.errors):
            yield Text(plain(f"* {level.name}: errors: {level.errors[0]} → {level.errors[1]}"))
        if any(level.unstable):
            yield Text(plain(f"* {level.name}: not stable in {_which(level, first, second)}"))
    yield Text(f"{CHANCE} {DRIFT}", style="dim")


def _which(level: LevelDifferences, first: str, second: str) -> str:
    return "both" if all(level.unstable) else first if level.unstable[0] else second


def _table(found: RunDifferences) -> Table:
    table = PlainTable(tight=True)
    table.add_column("level", no_wrap=True, max_width=18)
    table.add_column("figure", no_wrap=True)
    for name in ("first", "second", "change", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for level in found.levels:
        mark = "*" if any(level.errors) or any(level.unstable) else ""
        for at, one in enumerate(level.differences):
            figures = (amount(one.first), amount(one.second), change(one), interval_text(one))
            level_name = Text(plain(f"{level.name}{mark}" if at == 0 else ""))
            table.add_row(
                level_name, f"{one.figure} {one.unit}", *figures, Text(one.verdict, style=STYLES[one.verdict])
            )
    return table
