"""What commands print for machines, and where they write it unless told otherwise."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: object) -> None:
    """One value as JSON on stdout, indented."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def report_path(name: str, started_at: str) -> str:
    """Where a report goes by default; `name` may hold what is no letter of file names, `started_at` is ISO 8601."""
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
    stamp = started_at[:19].replace("-", "").replace(":", "").replace("T", "-")
    return f"reports/{safe}-{stamp}.json"


def check_writable(place: str) -> None:
    """Raise UsageError, before anything is measured, where a report cannot go; "-" is stdout."""
    from efserve.errors import UsageError

    path = Path(place).absolute()
    above = path if path.exists() else next(folder for folder in path.parents if folder.exists())
    if place != "-" and not os.access(above, os.W_OK):
        raise UsageError(f"cannot write {place}: {above} is not writable; name another file with --json or --csv")


def write_report(content: bytes, place: str, console: "Console", word: str = "Report") -> None:
    """To a file, and say on the console where; or to stdout, where the place is "-"."""
    from efserve import files

    if place == "-":
        sys.stdout.buffer.write(content)
        return
    files.write(Path(place), content)
    console.print(f"{word}: {place}", markup=False, soft_wrap=True)
