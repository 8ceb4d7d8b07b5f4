"""`efserve bench`: options -> BenchConfig -> run_bench -> tables, closing lines, report."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.errors import EfserveError, MeasurementFailed, UsageError

if TYPE_CHECKING:
    from efserve.loadtest.config import BenchConfig
    from efserve.records import BenchResult

INTERRUPTED = 130  # exit code after Ctrl-C


@click.command()
@click.option("--concurrency", default="1:10", show_default=True, help="Levels: START:END[:STEP], or a list 1,2,4.")
@click.option("--model", default="", help="Model to measure.  [default: the only or first one]")
@click.option("--model-version", default="", help="Its version.  [default: the latest]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows per request.")
@click.option("--url", default="", help="v2 server, http://HOST:PORT.  [default: start one with the options below]")
@click.option(
    "--metrics-url",
    default="",
    help="The server's Prometheus page, sampled meanwhile.  [default: port 8002 of its host, where it knows the model]",
)
@click.option(
    "--input",
    default="random",
    show_default=True,
    help="random, zero, FILE.npz (arrays by input, first axis: samples), or FILE.json (perf_analyzer's form).",
)
@click.option(
    "--shape", multiple=True, metavar="NAME:DIMS", help="Free dimensions, such as image:3,224,224; repeatable."
)
@click.option("--string-length", type=click.IntRange(0), default=16, show_default=True, help="Of random strings.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random input.")
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Longest measurement of one level, in seconds; it ends earlier when it is stable.",
)
@click.option(
    "--warmup", "warmup_s", type=click.FloatRange(0), default=0.5, show_default=True, help="Seconds of load before it."
)
@click.option(
    "--window",
    "window_ms",
    type=click.IntRange(1),
    help="Measurement window in ms; three like windows make a level stable.  [default: 1000, or a third of --duration]",
)
@click.option(
    "--percentile",
    type=click.Choice(["50", "90", "95", "99"]),
    help="Latency that the windows and the closing lines look at.  [default: the mean]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds until a request without an answer is an error.",
)
@click.option(
    "--json", "json_file", default="", help="Result file; - for stdout.  [default: reports/bench-MODEL-DATE-TIME.json]"
)
@click.option("--csv", "csv_file", default="", help="Also write a table for spreadsheets; - for stdout.")
@click.option(
    "--model-repository",
    type=click.Path(),
    multiple=True,
    help="For the embedded server: folder of models; repeatable.  [default: ./model_dir]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "torchscript", "python"]),
    help="For the embedded server: what runs the models.",
)
@click.option("--instances", type=click.IntRange(1), help="For the embedded server: worker processes per model.")
@click.option("--threads", type=click.IntRange(1), help="For the embedded server: engine threads per instance.")
@click.option("--max-batch", type=click.IntRange(1), help="For the embedded server: largest batch.")
@click.option("--queue-delay-us", type=click.IntRange(0), help="For the embedded server: how long requests may wait.")
@click.pass_context
def command(ctx: click.Context, /, json_file: str, csv_file: str, **options: Any) -> None:
    """Measure a v2 server under load, level by level.

    Keeps CONCURRENCY requests under way and measures until throughput and latency hold still. Without --url it starts
    `efserve serve` on free ports for the time of the benchmark. Ctrl-C ends the current level and reports what was
    measured; a second Ctrl-C ends at once.
    """
    from efserve.loadtest.config import BenchConfig

    if json_file == csv_file == "-":
        raise UsageError("--json - and --csv - cannot both have stdout")
    percentile, window_ms = options.pop("percentile"), options.pop("window_ms")
    config = BenchConfig(percentile=percentile and int(percentile), window_ms=window_ms or 0, **options)
    config.check()
    result = _run(ctx, config, machine_output="-" in (json_file, csv_file))
    _report(result, config, json_file, csv_file)
    if result.interrupted:
        ctx.exit(INTERRUPTED)
    if not any(level.statistics.requests for level in result.levels):
        raise MeasurementFailed("no request succeeded; the remarks above say why")


def _run(ctx: click.Context, config: "BenchConfig", *, machine_output: bool) -> "BenchResult":
    import uvloop

    from efserve.console import err, out
    from efserve.loadtest.run import run_bench
    from efserve.reports.bench import LiveLines

    interrupted = False

    async def measure() -> "BenchResult":
        nonlocal interrupted
        stop, task = asyncio.Event(), asyncio.current_task()
        assert task is not None

        def on_interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                task.cancel()
                return
            interrupted = True
            stop.set()
            click.echo("\nThis level ends here; Ctrl-C once more quits at once.", err=True)

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
        return await run_bench(config, LiveLines(err() if machine_output else out(), config.batch), stop)

    try:
        return uvloop.run(measure())
    except (asyncio.CancelledError, KeyboardInterrupt):
        ctx.exit(INTERRUPTED)
    except EfserveError as exc:
        if not interrupted:
            raise
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(INTERRUPTED)


def _report(result: "BenchResult", config: "BenchConfig", json_file: str, csv_file: str) -> None:
    from efserve.console import err, out
    from efserve.records import encode_result, write_result
    from efserve.reports.bench import as_csv, closing_lines, tables

    console = err() if "-" in (json_file, csv_file) else out()
    console.print()
    console.print(tables(result))
    console.print()
    for line in closing_lines(result, config.percentile):
        console.print(line, markup=False, soft_wrap=True)
    if json_file == "-":
        sys.stdout.buffer.write(encode_result(result))
    else:
        path = Path(json_file or _default_report(result))
        write_result(result, path)
        console.print(f"Report: {path}", markup=False, soft_wrap=True)
    if csv_file == "-":
        click.echo(as_csv(result), nl=False)
    elif csv_file:
        Path(csv_file).write_text(as_csv(result))
        console.print(f"CSV: {csv_file}", markup=False, soft_wrap=True)


def _default_report(result: "BenchResult") -> str:
    model = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in result.target.model)
    stamp = result.started_at[:19].replace("-", "").replace(":", "").replace("T", "-")
    return f"reports/bench-{model}-{stamp}.json"
