"""`efserve profile`: options -> ProfileConfig -> run -> tables, JSON, plots."""

from pathlib import Path
from typing import Any

import click

from efserve.commands import _options as shared
from efserve.errors import INTERRUPTED, UsageError
from efserve.profiler.options import DEFAULT_MAX_BATCH, ProfileConfig


def _numbers(text: str) -> tuple[int, ...]:
    """Positive whole numbers, separated by commas."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is no list of positive whole numbers such as 1,2,4")
    return numbers


def _percents(text: str) -> tuple[float, ...]:
    """Shares of a device in percent, separated by commas."""
    try:
        numbers = tuple(float(part.removesuffix("%")) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 100 for number in numbers):
        raise click.BadParameter(f"{text!r} is no list of percentages above 0 and up to 100, such as 25,50,100")
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
@shared.repositories
@click.option("--model", multiple=True, help="Profile only this model; repeatable.  [default: all]")
@click.option(
    "--engine",
    type=shared.ENGINE,
    multiple=True,
    default=("auto",),
    show_default=True,
    help="Profile the models on this engine; repeatable. auto: on each engine that they have a file for.",
)
@click.option(
    "--batches",
    type=_numbers,
    metavar="LIST",
    help="Measure these batch sizes, such as 1,8,32.  [default: 1,2,4,...; of pairs 1,8 and the largest]",
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
    "--shares",
    type=_percents,
    metavar="LIST",
    help="Measure these shares of the device in percent, such as 25,50.  [default: on a GPU with --grid 10,20,...,100]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="cpu, gpu0, gpu1, ... or a GPU's uuid; auto: the first GPU, or the CPU where there is none.",
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
@click.option("--resume", is_flag=True, help="Keep what is there and measure only what is missing.")
@click.option("--force", is_flag=True, help="Measure afresh; what is there is lost.")
@click.option(
    "--pairs",
    is_flag=True,
    help="Measure instead how much each two models slow each other down, side by side on complementary shares.",
)
@click.option(
    "--slo",
    "slo_ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Also name the most throughput with p99_ms, the latency of a batch in its worker, within MS.",
)
@click.option(
    "--roofline",
    is_flag=True,
    help="Count operations and bytes of the ONNX models, measure the device's limits, and compare. Runs no model, but "
    "with --grid or --pairs, which go first.",
)
@click.option("--plot", is_flag=True, help="Draw latency and throughput over the batch, as PNG beside each CSV file.")
@click.option("--json", is_flag=True, help="Print the result as JSON on stdout; the tables go to stderr.")
def command(
    engine: tuple[str, ...],
    batches: tuple[int, ...] | None,
    max_batch: int | None,
    cores: tuple[int, ...] | None,
    shares: tuple[float, ...] | None,
    shape: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Measure latency over batch sizes and shares of the device.

    Runs each model on each of its engines in a worker process per share (on a CPU: so many cores), and writes a CSV
    file with a row for each batch and share. With --pairs, runs each two models side by side and writes pairs.json,
    which `efserve plan --interference` reads. docs/profile.md tells each column.
    """
    from efserve.commands._roofline_output import check_roofline, show_roofline
    from efserve.reports.profile_plot import require_matplotlib

    config = ProfileConfig(
        engine=() if "auto" in engine else engine,
        batches=batches or (),
        max_batch=max_batch or 0,
        cores=cores or (),
        shares=shares or (),
        shape=dict(shape),
        **options,
    )
    if config.resume and config.force:
        raise UsageError("--resume keeps what is there, --force drops it: give one of the two")
    if config.pairs and config.slo_ms is not None:
        raise UsageError("--slo is about the batches of single models: leave it out with --pairs")
    if config.cores and config.shares:
        raise UsageError("--cores and --shares are two ways to say the same: give one of the two")
    if config.roofline:
        check_roofline(config)
    if config.plot:
        require_matplotlib()
    try:
        runs_models = config.grid or config.pairs or not config.roofline
        failures = _profile(config) if runs_models else ()
        failures += show_roofline(config) if config.roofline else ()
    except KeyboardInterrupt:
        click.echo("Interrupted. What was measured so far is kept; the same command with --resume goes on.", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if failures:
        click.get_current_context().exit(1)


def _profile(config: ProfileConfig) -> tuple[str, ...]:
    """Measure and print; what could not be measured."""
    from efserve.commands._profile_output import print_pairs, print_profiles, progress_bar
    from efserve.console import err
    from efserve.profiler import grid, pair_runs

    with progress_bar(err()) as on_progress:
        measured = pair_runs.run(config, on_progress) if config.pairs else grid.run(config, on_progress)
    if isinstance(measured, grid.ProfileResult):
        print_profiles(measured, config)
    else:
        print_pairs(measured, config)
    return measured.failures
