"""`efserve infer`: options -> InferJob -> predict -> the top classes, or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.commands._output import print_json
from efserve.predictor.predict import InferJob, Prediction, predict

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--url",
    default="",
    help="Ask this running server: http[s]://HOST:PORT or grpc[s]://HOST:PORT.  [default: run here]",
)
@shared.tls
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    default=Path("model_dir"),
    show_default=True,
    help="Folder of models to load MODEL from; not used with --url.",
)
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@shared.engine("What runs the model here; auto: what `efserve serve` takes.")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Show so many classes for each row.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
def command(as_json: bool, **options: Any) -> None:
    """Run MODEL on files and print the top classes.

    A FILE is an image (.png, .jpg, ...), resized and scaled as the model's config tells; an array (.npy); or values
    (.json: nested lists, or the inputs of a v2 request). Arrays may hold one row or several.

    \b
    Examples:
      efserve infer digits examples/digits/seven.png
      efserve infer digits examples/digits/*.png --url http://127.0.0.1:8000
      efserve infer digits examples/digits/*.png --url grpc://127.0.0.1:8001
    """
    from efserve.console import out

    predictions = predict(InferJob(**options))
    if as_json:
        rows = [
            {"file": found.sample, "classes": found.classes, "outputs": found.outputs}  # one of the two is empty
            for found in predictions
        ]
        print_json({"model": options["model"], "rows": rows})
    elif predictions and predictions[0].classes:
        _show_classes(predictions, out())
    else:
        _show_outputs(predictions, out())


def _show_classes(predictions: list[Prediction], console: "Console") -> None:
    from rich.text import Text

    from efserve.reports.tables import PlainTable

    labelled = any(found.label for prediction in predictions for found in prediction.classes)
    table = PlainTable()
    table.add_column("File", overflow="fold")
    table.add_column("Class", justify="right")
    if labelled:
        table.add_column("Label", overflow="fold")
    table.add_column("Score", justify="right")
    for prediction in predictions:
        for rank, found in enumerate(prediction.classes):
            cells = [str(found.index), *([found.label] if labelled else []), f"{found.score:.4f}"]
            style = "bold" if rank == 0 else "dim"
            table.add_row(Text(prediction.sample if rank == 0 else ""), *(Text(cell, style) for cell in cells))
    console.print(table)


def _show_outputs(predictions: list[Prediction], console: "Console") -> None:
    from rich.text import Text

    from efserve.reports.tables import PlainTable

    table = PlainTable()
    for column in ("File", "Output", "Datatype", "Shape", "First values"):
        table.add_column(column, overflow="fold")
    for prediction in predictions:
        for row, found in enumerate(prediction.outputs):
            values = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in found.first)
            cells = (found.name, found.datatype, str(list(found.shape)), values)
            table.add_row(Text(prediction.sample if row == 0 else ""), *map(Text, cells))
    console.print(table)
