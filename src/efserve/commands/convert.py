"""`efserve convert`: options -> ConvertJob -> convert -> the parity report, or JSON."""

import signal
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from efserve.converter.job import DEFAULT_MAX_BATCH, DEFAULT_OPSET, FILENAMES, ConvertJob, ConvertResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


@click.command()
@click.argument("source")
@click.option(
    "--model-repository",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("model_dir"),
    show_default=True,
    help="Folder that the model is written into, as <name>/<version>/.",
)
@click.option(
    "--name", default="", help="Name of the model.  [default: the stem of SOURCE, with _PRECISION unless fp32]"
)
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="Version to write.")
@click.option(
    "--format",
    type=click.Choice(["onnx", "torchscript", "tensorrt", "all"]),
    default="all",
    show_default=True,
    help="What to write: model.onnx, model.pt, both, or model.onnx with a TensorRT plan for the GPU here.",
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="default|none|FILE",
    help="The published weights (downloaded once), random ones, or a state dict in a .pth, .pt or .safetensors file.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16: weights, compute, inputs and outputs in half precision. bf16: compute, for processors that have it. "
    "int8: ONNX alone, calibrated. What each loses is measured.",
)
@click.option(
    "--calibration",
    default="",
    metavar="FILE|FOLDER",
    help="Samples of what the model will see, as images, .npy, .npz or .json: they calibrate int8, and show what a "
    "precision loses.  [default: random images or values]",
)
@click.option(
    "--opset",
    type=click.IntRange(9),
    help=f"Version of ONNX's operators.  [default: {DEFAULT_OPSET}; an ONNX file keeps its own]",
)
@click.option(
    "--input-shape",
    multiple=True,
    metavar="[NAME:]DIMS",
    help="Shape of an input without the batch, such as 3,224,224 or ids:128; repeat it for each input, in the order "
    "of forward's arguments. Needed for TorchScript files and callables.",
)
@click.option(
    "--dtype",
    multiple=True,
    metavar="[NAME:]DATATYPE",
    help="Datatype of an input, such as INT64 or ids:INT64; repeatable.  [default: FP32]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(0),
    default=DEFAULT_MAX_BATCH,
    show_default=True,
    help="max_batch_size in config.pbtxt. 0: the model does not batch, and --input-shape gives whole shapes.",
)
@click.option("--force", is_flag=True, help="Replace a version, or a config.pbtxt of other tensors, that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout; progress goes to stderr.")
def command(as_json: bool, **options: Any) -> None:
    """Convert SOURCE to TorchScript and ONNX and check both against it.

    SOURCE is a torchvision classification model by name (resnet50), a TorchScript file (.pt), an ONNX file (.onnx), or
    package.module:callable, which is called without arguments and returns a torch.nn.Module.

    The files are run at batches 1 and 3 on random inputs. Where one differs from SOURCE by more than the precision
    allows, nothing is kept and the exit code is 1.

    \b
    Examples:
      efserve convert resnet50
      efserve convert net.pt --input-shape 3,32,32 --name net
      efserve convert shop.models:ranker --input-shape ids:16 --dtype ids:INT64
    """
    from efserve.console import err, out
    from efserve.converter.convert import convert

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave like on Ctrl-C: with nothing half-made
    with _Steps(err()) as steps:
        result = convert(ConvertJob(**options), steps.begin)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"schema_version": 1, **msgspec.to_builtins(result, enc_hook=str)}))
    else:
        _show(result, out())


class _Steps:
    """Shows the step that runs: a spinner and its time on a terminal, a line as it begins elsewhere."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._status: Status | None = None
        self._step = ""
        self._begun_s = 0.0

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end("failed" if kind else "")

    def begin(self, step: str) -> None:
        self._end("")
        self._step, self._begun_s = step, time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(f"{step} ...")
            self._status.start()
        else:
            self._console.print(f"{step} ...", markup=False)

    def _end(self, word: str) -> None:
        if self._status is None:
            return
        self._status.stop()
        self._status = None
        took = f"{time.monotonic() - self._begun_s:6.1f} s"
        mark = f"[red]{word}[/]" if word else f"[dim]{took}[/]"
        self._console.print(f"  {self._step:<56.56} {mark}")


def _show(result: ConvertResult, console: "Console") -> None:
    from efserve.reports.tables import PlainTable

    console.print(f"{result.name}, {result.precision}: largest difference from the source", markup=False)
    table = PlainTable()
    table.add_column("File")
    for column in ("Batch", "Absolute", "Relative"):
        table.add_column(column, justify="right")
    for found in result.parity:
        table.add_row(FILENAMES[found.format], str(found.batch), f"{found.max_abs:.2e}", f"{found.max_rel:.2e}")
    console.print(table)
    console.print()
    if result.losses:
        _show_losses(result, console)
    for note in result.notes:
        console.print(f"Note: {note}", markup=False)
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in result.file_bytes.items())
    console.print(f"Wrote {result.folder} ({sizes})", markup=False, soft_wrap=True)


def _show_losses(result: ConvertResult, console: "Console") -> None:
    from efserve.reports.tables import PlainTable

    first = result.losses[0]
    console.print(f"Loss over {first.over}, whose scores reach {first.scale:.3g}", markup=False)
    table = PlainTable()
    table.add_column("File")
    table.add_column("Engine")
    for column in ("Mean", "Largest", "Same top-1"):
        table.add_column(column, justify="right")
    for loss in result.losses:
        same = "" if loss.top1_agreement is None else f"{loss.top1_agreement:.1%}"
        table.add_row(FILENAMES[loss.format], loss.engine, f"{loss.mean_abs:.2e}", f"{loss.max_abs:.2e}", same)
    console.print(table)
    console.print()


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
