"""`efserve bench`: options -> BenchConfig -> run_bench -> tables, closing lines, report."""

from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.commands._output import check_writable, report_path, write_report
from efserve.errors import INTERRUPTED, MeasurementFailed, UsageError
from efserve.interrupts import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from efserve.loadtest.config import BenchConfig
    from efserve.records import BenchResult, Load

BAR_LETTERS = 30


@click.command()
@click.option(
    "--concurrency",
    default="",
    help="Closed loop: requests kept under way, START:END[:STEP] or a list 1,2,4.  [default: 1:10]",
)
@click.option(
    "--request-rate", default="", help="Open loop: requests per second, in the same form, whatever the server answers."
)
@shared.arrivals
@click.option(
    "--load-shape",
    type=click.Choice(["step", "ramp", "sine", "burst"]),
    help="One level in which the rate changes within --request-rate START:END[:STEP].",
)
@click.option(
    "--schedule", default="", metavar="FILE", help="Open loop at the times of a file: seconds, and optionally a model."
)
@click.option(
    "--workload",
    default="",
    metavar="FILE",
    help="Open loop on several models: JSON or YAML with their rates, batches, shapes and slo_ms.",
)
@click.option("--clients", type=click.IntRange(1, 10_000), help="Stress test: short-lived clients at a time.")
@click.option(
    "--total-clients",
    type=click.IntRange(1),
    help="Of the stress test, one after the other.  [default: 20 x --clients]",
)
@click.option(
    "--requests-per-client", type=click.IntRange(1), help="Of each client, on its own connection.  [default: 10]"
)
@click.option(
    "--request-count", type=click.IntRange(1), help="Send so many requests per level, instead of --duration seconds."
)
@shared.senders
@click.option(
    "--latency-threshold",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Search the levels of --concurrency or --request-rate for the highest with at most this latency.",
)
@click.option(
    "--search",
    type=click.Choice(["binary", "linear"]),
    default="binary",
    show_default=True,
    help="How --latency-threshold goes through the levels.",
)
@click.option(
    "--max-rate-under-slo",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Find the highest rate at which 99 % of the requests end within so many ms.",
)
@click.option(
    "--goodput",
    multiple=True,
    metavar="MODEL=MS",
    help="Count the answers of a model within so many ms; repeatable; MS alone for a single model.",
)
@click.option("--model", default="", help="Model to measure.  [default: the only or first one]")
@shared.model_version
@click.option(
    "--cold",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=5,
    metavar="[N]",
    help="Instead of load: start the embedded server N times (5), from process to first inference.",
)
@click.option(
    "--url",
    default="",
    help="v2 server, http[s]://HOST:PORT or grpc[s]://HOST:PORT.  [default: start one with the options below]",
)
@shared.tls
@click.option(
    "--metrics-url",
    default="",
    help="The server's Prometheus page, sampled meanwhile.  [default: port 8002 of its host, where it knows the model]",
)
@shared.inputs
@click.option(
    "--shared-memory",
    type=click.Choice(["none", "system"]),
    default="none",
    callback=shared.meaning("none", ""),
    show_default=True,
    help="system: tensors lie in shared memory, with a server on this machine.",
)
@shared.times
@click.option(
    "--percentile",
    type=click.Choice(["50", "90", "95", "99"]),
    callback=lambda _context, _option, given: given and int(given),
    help="Latency that the windows and the closing lines look at.  [default: the mean]",
)
@click.option(
    "--json", "json_file", default="", help="Result file; - for stdout.  [default: reports/bench-MODEL-DATE-TIME.json]"
)
@click.option("--csv", "csv_file", default="", help="Also write a table for spreadsheets; - for stdout.")
@click.option("--plot", is_flag=True, help="Plot throughput and latency in the terminal while it runs.")
@click.option(
    "--protocol",
    type=click.Choice(["http", "grpc"]),
    callback=shared.meaning(None, ""),
    help="For the embedded server: how to speak.  [default: http]",
)
@click.option(
    "--model-repository",
    type=click.Path(),
    multiple=True,
    help="For the embedded server: folder of models; repeatable.  [default: ./model_dir]",
)
@click.option(
    "--engine",
    type=shared.ENGINE,
    help="For the embedded server: what runs the models.",
)
@click.option("--instances", type=click.IntRange(1), help="For the embedded server: worker processes per model.")
@click.option("--threads", type=click.IntRange(1), help="For the embedded server: engine threads per instance.")
@click.option("--max-batch", type=click.IntRange(1), help="For the embedded server: largest batch.")
@click.option("--queue-delay-us", type=click.IntRange(0), help="For the embedded server: how long requests may wait.")
@click.pass_context
def command(ctx: click.Context, /, json_file: str, csv_file: str, plot: bool, **options: Any) -> None:
    """Measure a v2 server under load, level by level.

    A closed loop (--concurrency) keeps so many requests under way; an open loop (--request-rate) sends at its own times
    and counts latency from the time when a request was to be sent. Each level lasts until throughput and latency hold
    still. Without --url it starts `efserve serve` on free ports for the time of the benchmark. Ctrl-C ends the current
    level and reports what was measured; a second Ctrl-C ends at once.
    """
    from efserve.loadtest.config import BenchConfig

    if json_file == csv_file == "-":
        raise UsageError("--json - and --csv - cannot both have stdout")
    config = BenchConfig(**options)
    config.check()
    if config.cold:
        _run_cold(ctx, config, json_file, has_more=bool(csv_file or plot))
        return
    for place in (json_file or report_path("", ""), csv_file):
        check_writable(place or "-")
    result = _run(ctx, config, machine_output="-" in (json_file, csv_file), plot=plot)
    _report(result, config, json_file, csv_file)
    if result.interrupted:
        ctx.exit(INTERRUPTED)
    if not any(level.statistics.requests for level in result.levels):
        raise MeasurementFailed("no request succeeded; the remarks above say why")


def _run(ctx: click.Context, config: "BenchConfig", *, machine_output: bool, plot: bool) -> "BenchResult":
    from efserve.console import err, out
    from efserve.loadtest.run import run_bench
    from efserve.reports.bench import LiveLines
    from efserve.reports.live_plot import LivePlot

    console = err() if machine_output else out()
    on_progress = _progress_bar(console) if console.is_terminal and not plot else None
    observer = LivePlot(console, config.batch) if plot else LiveLines(console, config.batch)
    result = run(lambda stop: run_bench(config, observer, stop, on_progress), "This level ends here")
    if result is None:
        ctx.exit(INTERRUPTED)
    return result


def _run_cold(ctx: click.Context, config: "BenchConfig", json_file: str, *, has_more: bool) -> None:
    import msgspec

    from efserve.console import err, out
    from efserve.loadtest.cold import measure_cold
    from efserve.reports.cold import cold_table, start_line

    if has_more:
        raise UsageError("--csv and --plot are for measurements under load; --cold has its table and --json")
    console = err() if json_file == "-" else out()
    result = run(
        lambda stop: measure_cold(
            config, stop, lambda number, start: console.print(start_line(number, start), markup=False)
        ),
        "No more starts",
    )
    if result is None:
        ctx.exit(INTERRUPTED)
    console.print()
    console.print(f"{result.model} on {result.engine}, ms over {len(result.starts)} starts", markup=False)
    console.print(cold_table(result))
    if json_file:
        write_report(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n", json_file, console)
    if result.interrupted:
        ctx.exit(INTERRUPTED)


def _progress_bar(console: "Console") -> "Callable[[Load, int, int], None]":
    """A bar in the line of the level that runs: how many of its clients or requests have ended."""

    def draw(load: "Load", done: int, total: int) -> None:
        filled = BAR_LETTERS * done // max(total, 1)
        bar = "#" * filled + "-" * (BAR_LETTERS - filled)
        text = f"{load.label:>6} [{bar}] {done}/{total}"
        console.print(text.ljust(60), end="\r", markup=False, highlight=False, soft_wrap=True)

    return draw


def _report(result: "BenchResult", config: "BenchConfig", json_file: str, csv_file: str) -> None:
    from efserve.console import err, out
    from efserve.records import encode_result
    from efserve.reports.bench import closing_lines, tables
    from efserve.reports.csv_table import as_csv

    console = err() if "-" in (json_file, csv_file) else out()
    console.print()
    console.print(tables(result))
    console.print()
    for line in closing_lines(result, config.percentile):
        console.print(line, markup=False, soft_wrap=True)
    default = report_path(f"bench-{result.target.model}", result.started_at)
    write_report(encode_result(result), json_file or default, console)
    if csv_file:
        write_report(as_csv(result).encode(), csv_file, console, "CSV")
