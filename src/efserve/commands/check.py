"""`efserve check`: options -> CheckJob -> check -> a table per version, or JSON."""

from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.commands._output import print_json
from efserve.inspection.check import CheckJob

if TYPE_CHECKING:
    from rich.console import Console

    from efserve.inspection.check import Checked


@click.command()
@click.argument("model", nargs=-1)
@shared.repositories
@shared.engine("What would run the models.")
@shared.workers
@shared.strict_provider
@shared.load_timeout
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool, **options: Any) -> None:
    """Validate a model repository without serving it.

    Loads each MODEL (all, if none is named) once, as a server would, and tells what was completed, what each field
    means for the model, and what will surprise. Ends with 1 when a model cannot be served.
    """
    import asyncio

    from efserve.console import out
    from efserve.inspection.check import check

    results = asyncio.run(check(CheckJob(**options)))
    if as_json:
        print_json(results)
    else:
        for result in results:
            _show(result, out())
    if any(result.error for result in results):
        raise SystemExit(1)


def _show(result: "Checked", console: "Console") -> None:
    from rich.markup import escape

    from efserve.reports.tables import PlainTable

    title = f"[bold]{escape(result.model)}[/]" + (f" version {escape(result.version)}" if result.version else "")
    if result.error:
        console.print(f"{title}: [red]cannot be served[/]\n  {escape(result.error)}\n")
        return
    memory_mb = result.rss_bytes / 1e6
    console.print(
        f"{title}: [green]ok[/], loads in {result.load_s:.2f} s, warms up in {result.warmup_s:.2f} s, "
        f"{memory_mb:.0f} MB per instance"
    )
    table = PlainTable()
    for column in ("field", "value", "from", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column in ("field", "from"))
    for field in result.fields:
        table.add_row(*map(escape, (field.name, field.value, field.source, field.meaning)))
    console.print(table)
    for remark in result.remarks:
        console.print(escape(remark))
    for surprise in result.surprises:
        console.print(f"[yellow]note[/] {escape(surprise)}")
    console.print()
