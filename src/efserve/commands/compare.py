"""`efserve compare`: options -> CompareConfig -> run_comparison -> tables, report."""

from typing import Any

import click

from efserve.commands import _options as shared
from efserve.commands._output import check_writable, report_path, write_report
from efserve.errors import INTERRUPTED
from efserve.interrupts import run


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET TARGET...")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each has its turn.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests under way.")
@click.option(
    "--request-rate", type=click.FloatRange(0, min_open=True), help="Instead: requests/s, whatever the server does."
)
@shared.arrivals
@shared.senders
@click.option("--model", default="", help="Model to measure.  [default: each server's only or first one]")
@shared.model_version
@shared.inputs
@shared.times
@shared.tls
@click.option(
    "--model-repository", type=click.Path(), multiple=True, help="For embedded servers that name none; repeatable."
)
@click.option(
    "--json", "json_file", default="", help="Report; - for stdout.  [default: reports/compare-DATE-TIME.json]"
)
@click.pass_context
def command(ctx: click.Context, /, json_file: str, **options: Any) -> None:
    """Measure several servers under the same load in turns, and compare each with the first.

    A TARGET is a URL, NAME=URL, or NAME=OPTIONS for a server started with these options of `efserve serve`:

    \b
      efserve compare http://a:8000 http://b:8000 --model cnn
      efserve compare one="--instances 1" two="--instances 2" --rounds 9

    The ratio is taken within each round, so that a machine that drifts does not decide; where its interval (95 %)
    contains 1 the difference is called noise. Ctrl-C reports the rounds that are over.
    """
    from efserve.console import err, out
    from efserve.loadtest.compare import CompareConfig, run_comparison
    from efserve.reports.compare import TurnLines, tables

    config = CompareConfig(**options)
    config.contenders()
    check_writable(json_file or report_path("", ""))
    console = err() if json_file == "-" else out()
    result = run(lambda stop: run_comparison(config, TurnLines(console), stop), "This round is given up")
    if result is None:
        ctx.exit(INTERRUPTED)
    console.print()
    console.print(tables(result))
    write_report(result.as_json(), json_file or report_path("compare", result.started_at), console)
    if result.interrupted:
        ctx.exit(INTERRUPTED)
