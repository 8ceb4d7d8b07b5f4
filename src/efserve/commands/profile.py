"""`efserve profile`: options -> ProfileConfig -> run -> tables, JSON, plots."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.errors import UsageError
from efserve.profiler.options import DEFAULT_MAX_BATCH, ProfileConfig

if TYPE_CHECKING:
    from rich.console import Console

    from efserve.profiler.grid import ProfileResult
    from efserve.profiler.grid import Progress as GridProgress

INTERRUPTED = 130  # exit code, as shells give it for SIGINT


def _numbers(text: str) -> tuple[int, ...]:
    """Positive whole numbers, separated by commas."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is no list of positive whole numbers such as 1,2,4")
    return numbers


def _named_dims(text: str) -> tuple[str, tuple[int, ...]]:
    """A tensor's name and its dims, `name:dims`."""
    name, _, dims = text.rpartition(":")
    try:
        shape = tuple(int(part) for part in dims.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 0:
        raise click.BadParameter(f"{text!r} is no name:dims such as input:3,224,224")
    return name, shape


@click.command()
@click.option("--grid", is_flag=True, help="Measure every share of the device, not only the whole of it.")
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    multiple=True,
    default=(Path("model_dir"),),
    show_default="./model_dir",
    help="Folder of models in Triton's layout; repeatable.",
)
@click.option("--model", multiple=True, help="Profile only this model; repeatable.  [default: all]")
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "torchscript", "python"]),
    multiple=True,
    default=("auto",),
    show_default=True,
    help="Profile the models on this engine; repeatable. auto: on each engine that they have a file for.",
)
@click.option(
    "--batches", type=_numbers, metavar="LIST", help="Measure these batch sizes, such as 1,8,32.  [default: 1,2,4,...]"
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help=f"Largest batch size.  [default: {DEFAULT_MAX_BATCH}, or the config's where that is larger]",
)
@click.option(
    "--cores",
    type=_numbers,
    metavar="LIST",
    help="Measure shares of these numbers of cores, such as 1,2,8.  [default: with --grid 1,2,3,...; else all]",
)
@click.option(
    "--shape",
    type=_named_dims,
    metavar="NAME:DIMS",
    multiple=True,
    help="Dims of an input, without the batch; repeatable.  [default: the config's; free dims are 1]",
)
@click.option(
    "--min-repetitions", type=click.IntRange(3), default=20, show_default=True, help="Run each batch at least so often."
)
@click.option(
    "--min-time",
    "min_time_s",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Measure each batch for at least so many seconds; five times that if it does not become steady.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("profiled_data"),
    show_default="./profiled_data",
    help="Folder for the profiles: OUTPUT/<device>/<model>.<engine>.csv and .json.",
)
@click.option("--resume", is_flag=True, help="Keep the rows that are there and measure only what is missing.")
@click.option("--force", is_flag=True, help="Measure afresh; rows that are there are lost.")
@click.option(
    "--slo",
    "slo_ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Also name the most throughput with p99_ms, the latency of a batch in its worker, within MS.",
)
@click.option("--plot", is_flag=True, help="Draw latency and throughput over the batch, as PNG beside each CSV file.")
@click.option("--json", is_flag=True, help="Print the result as JSON on stdout; the tables go to stderr.")
def command(
    engine: tuple[str, ...],
    batches: tuple[int, ...] | None,
    max_batch: int | None,
    cores: tuple[int, ...] | None,
    shape: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Measure latency over batch sizes and shares of the device.

    Runs each model on each of its engines in a worker process per share (on a CPU: so many cores), and writes a CSV
    file with a row for each batch and share. docs/profile.md tells each column.
    """
    from efserve.reports.profile_plot import require_matplotlib

    config = ProfileConfig(
        engine=() if "auto" in engine else engine,
        batches=batches or (),
        max_batch=max_batch or 0,
        cores=cores or (),
        shape=dict(shape),
        **options,
    )
    if config.resume and config.force:
        raise UsageError("--resume keeps the rows that are there, --force drops them: give one of the two")
    if config.plot:
        require_matplotlib()
    try:
        result = _run(config)
        _print(result, config)
    except KeyboardInterrupt:
        click.echo("Interrupted. The rows measured so far are kept; the same command with --resume goes on.", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if result.failures:
        click.get_current_context().exit(1)


def _run(config: ProfileConfig) -> "ProfileResult":
    from efserve.console import err
    from efserve.profiler.grid import run

    with _bar(err()) as on_progress:
        return run(config, on_progress)


@contextmanager
def _bar(console: "Console") -> Iterator[Any]:
    """A progress bar with the time left, on a terminal; remarks are printed above it."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn())
    # A slow refresh: on a share of all cores the bar takes its time from what is measured.
    with Progress(
        *columns, console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def on_progress(progress: "GridProgress") -> None:
            bar.update(
                task,
                completed=progress.done_rows,
                total=progress.total_rows,
                description=escape(progress.doing) if progress.doing else None,
            )
            if progress.remark:
                console.print(progress.remark, markup=False, soft_wrap=True)

        yield on_progress


def _print(result: "ProfileResult", config: ProfileConfig) -> None:
    """A table with its best rows for each profile, then the files; with --json the values on stdout."""
    from efserve.console import err, out
    from efserve.reports.profile_plot import plot_profile
    from efserve.reports.profile_table import best_lines, profile_table

    console = err() if config.json else out()
    for profile in result.profiles:
        console.print(profile_table(profile.facts, profile.rows, config.slo_ms))
        for line in best_lines(profile.rows, config.slo_ms):
            console.print(line, markup=False)
        files = [profile.target.csv_path]
        if config.plot:
            files.append(profile.target.csv_path.with_suffix(".png"))
            plot_profile(profile.facts, profile.rows, config.slo_ms, files[-1])
        console.print(f"-> {', '.join(map(str, files))}\n", markup=False, soft_wrap=True)
    if config.json:
        click.echo(_json(result, config.slo_ms))


def _json(result: "ProfileResult", slo_ms: float | None) -> bytes:
    import msgspec

    from efserve.profiles import best_by_throughput, best_under_slo

    profiles = [
        {
            "csv": str(profile.target.csv_path),
            "facts": profile.facts,
            "rows": profile.rows,
            "best_by_throughput": best_by_throughput(profile.rows),
            "best_under_slo": None if slo_ms is None else best_under_slo(profile.rows, slo_ms),
        }
        for profile in result.profiles
    ]
    whole = {"device": result.device, "slo_ms": slo_ms, "profiles": profiles, "failures": result.failures}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2)
