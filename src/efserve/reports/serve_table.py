"""The table that `efserve serve` prints when it is up."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from efserve.console import err

if TYPE_CHECKING:
    from efserve.server.run import ServerStatus

_STYLES = {"READY": "green", "UNAVAILABLE": "red"}


def print_status(status: "ServerStatus") -> None:
    """Models with their state, the reasons of those that failed, and where to send requests; on stderr."""
    console = err()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "version", "engine"):
        table.add_column(column, overflow="fold")
    for column in ("instances", "threads", "batch"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for model in status.models:
        style = _STYLES.get(model.state, "yellow")
        counts = (str(value) if value else "-" for value in (model.instances, model.threads, model.max_batch_size))
        name, version, engine = (escape(text) or "-" for text in (model.name, model.version, model.engine))
        table.add_row(name, version, engine, *counts, f"[{style}]{model.state}[/]")
    console.print(table)
    for model in status.models:
        if model.reason:
            console.print(f"[red]{escape(model.name)}[/]: {escape(model.reason)}")
    console.print(f"\nHTTP     {status.http}/v2\nmetrics  {status.metrics}/metrics\nCtrl-C stops.")
