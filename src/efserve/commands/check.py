"""`efserve check`: options -> CheckJob -> check -> a table per version, or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.inspection.check import CheckJob

if TYPE_CHECKING:
    from rich.console import Console

    from efserve.inspection.check import Checked


@click.command()
@click.argument("model", nargs=-1)
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    multiple=True,
    default=("model_dir",),
    help="Folder of models in Triton's layout; repeatable.  [default: ./model_dir]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "torchscript", "openvino", "tensorrt", "python"]),
    default="auto",
    show_default=True,
    callback=lambda _context, _option, value: "" if value == "auto" else value,
    help="What would run the models.",
)
@click.option("--instances", type=click.IntRange(1), help="Worker processes per model.  [default: config, or 1]")
@click.option("--threads", type=click.IntRange(1), help="Engine threads per instance.  [default: cores / instances]")
@click.option(
    "--strict-provider",
    is_flag=True,
    help="Refuse ONNX models of which onnxruntime would run some nodes on the CPU though a GPU was asked for.",
)
@click.option(
    "--load-timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Deadline for a model to be ready.",
)
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
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(results), indent=2))
    else:
        for result in results:
            _show(result, out())
    if any(result.error for result in results):
        raise SystemExit(1)


def _show(result: "Checked", console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    title = f"[bold]{escape(result.model)}[/]" + (f" version {escape(result.version)}" if result.version else "")
    if result.error:
        console.print(f"{title}: [red]cannot be served[/]\n  {escape(result.error)}\n")
        return
    memory_mb = result.rss_bytes / 1e6
    console.print(
        f"{title}: [green]ok[/], loads in {result.load_s:.2f} s, warms up in {result.warmup_s:.2f} s, "
        f"{memory_mb:.0f} MB per instance"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("field", "value", "from", "meaning"):
        table.add_column(column, overflow="fold")
    for field in result.fields:
        table.add_row(*map(escape, (field.name, field.value, field.source, field.meaning)))
    console.print(table)
    for remark in result.remarks:
        console.print(escape(remark))
    for surprise in result.surprises:
        console.print(f"[yellow]note[/] {escape(surprise)}")
    console.print()
