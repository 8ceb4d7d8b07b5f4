"""`efserve models`: options -> ModelsJob -> one call on a running server -> a table or JSON."""

from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efserve.commands import _options as shared
from efserve.commands._output import print_json
from efserve.errors import UsageError
from efserve.inspection.remote import ModelsJob

if TYPE_CHECKING:
    from efserve.inspection.remote import IndexLine, ServerModels

Value = TypeVar("Value")
_STYLES = {"READY": "green", "UNAVAILABLE": "red"}
_url = click.option("--url", help="The server, where it was not given before the subcommand.")


@click.group(invoke_without_command=True)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running server.")
@shared.tls
@click.option("--admin-token-file", type=click.Path(path_type=Path), help="File with the server's bearer token.")
@click.option(
    "--timeout-s",
    type=shared.SECONDS,
    default=300.0,
    show_default=True,
    help="Deadline for the answer; a load answers when the model is ready.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the index and the placements as JSON.")
@click.pass_context
def command(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Show the models of a running server; load and unload them.

    \b
    Examples:
      efserve models
      efserve models load digits --url http://127.0.0.1:8000
    """
    context.obj = ModelsJob(**options)
    if context.invoked_subcommand is None:
        lines = _run(_server(context.obj).index())
        if as_json:
            print_json(lines)
        else:
            _show_index(lines)


@command.command()
@click.argument("model")
@click.option("--config", type=click.Path(path_type=Path), help="JSON config instead of the repository's.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PLACE=PATH",
    help="Send PATH as the model's PLACE, such as 1/model.onnx=new.onnx, instead of its files; repeatable.",
)
@_url
@click.pass_obj
def load(job: ModelsJob, model: str, config: Path | None, files: tuple[str, ...], url: str | None) -> None:
    """Load or reload MODEL."""
    pairs = {}
    for text in files:
        place, equals, path = text.partition("=")
        if not (place and equals and path):
            raise UsageError(f"--file is '{text}', expected PLACE=PATH such as 1/model.onnx=new.onnx")
        pairs[place] = Path(path)
    _run(_server(job, url).load(model, config, pairs))


@command.command()
@click.argument("model")
@_url
@click.pass_obj
def unload(job: ModelsJob, model: str, url: str | None) -> None:
    """Unload MODEL."""
    _run(_server(job, url).unload(model))


@command.command()
@click.argument("model")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@_url
@click.pass_obj
def config(job: ModelsJob, model: str, version: str, url: str | None) -> None:
    """Print the config of MODEL, completed, as JSON."""
    print_json(_run(_server(job, url).config(model, version)))


@command.command()
@click.argument("model", default="")
@_url
@click.pass_obj
def stats(job: ModelsJob, model: str, url: str | None) -> None:
    """Print the statistics of MODEL, or of all, as JSON."""
    print_json(_run(_server(job, url).statistics(model)))


def _server(job: ModelsJob, url: str | None = None) -> "ServerModels":
    from efserve.inspection.remote import ServerModels

    return ServerModels(replace(job, url=url) if url else job)


def _run(work: Coroutine[Any, Any, Value]) -> Value:
    import asyncio

    return asyncio.run(work)


def _show_index(lines: "list[IndexLine]") -> None:
    from rich.markup import escape

    from efserve.console import out
    from efserve.reports.placement_table import placements_table
    from efserve.reports.tables import PlainTable

    table = PlainTable()
    for column in ("model", "version", "state", "reason"):
        table.add_column(column, overflow="fold")
    for line in lines:
        style = _STYLES.get(line.state, "yellow")
        table.add_row(
            escape(line.name), line.version or "-", f"[{style}]{line.state or 'not loaded'}[/]", escape(line.reason)
        )
    out().print(table)
    placements = [placement for line in lines for placement in line.placements]
    if placements:
        out().print()
        out().print(placements_table(placements))
