"""`efserve compare`: options -> CompareConfig -> run_comparison -> tables, report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.errors import INTERRUPTED
from efserve.interrupts import run

if TYPE_CHECKING:
    from efserve.comparison import Comparison


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET TARGET...")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each has its turn.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests under way.")
@click.option(
    "--request-rate", type=click.FloatRange(0, min_open=True), help="Instead: requests/s, whatever the server does."
)
@click.option(
    "--distribution",
    type=click.Choice(["constant", "poisson", "gamma"]),
    default="constant",
    show_default=True,
    help="Of the times between requests at a rate.",
)
@click.option(
    "--gamma-cv",
    type=click.FloatRange(0.05, 20),
    default=2.0,
    show_default=True,
    help="Coefficient of variation of gamma's times.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 60_000),
    default=1024,
    show_default=True,
    help="At a rate: requests under way at most; others wait in the client, and their latency counts.",
)
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="That make the load together."
)
@click.option("--model", default="", help="Model to measure.  [default: each server's only or first one]")
@click.option("--model-version", default="", help="Its version.  [default: the latest]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows per request.")
@click.option("--input", default="random", show_default=True, help="random, zero, FILE or folder.")
@click.option(
    "--tensor-format",
    type=click.Choice(["auto", "json", "binary"]),
    default="auto",
    show_default=True,
    help="How tensors travel; auto: binary where the server can.",
)
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Free dimensions; repeatable.")
@click.option("--string-length", type=click.IntRange(0), default=16, show_default=True, help="Of random strings.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random input.")
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Longest measurement of one turn, in seconds; it ends earlier when it is stable.",
)
@click.option(
    "--warmup", "warmup_s", type=click.FloatRange(0), default=0.5, show_default=True, help="Seconds of load before it."
)
@click.option(
    "--window", "window_ms", type=click.IntRange(1), help="Measurement window in ms.  [default: 1000, or a third]"
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds until a request without an answer is an error.",
)
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Authorities to believe, PEM.  [default: the system's]")
@click.option("--tls-insecure", is_flag=True, help="Believe any certificate.")
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

    config = CompareConfig(window_ms=options.pop("window_ms") or 0, **options)
    config.contenders()
    console = err() if json_file == "-" else out()
    result = run(lambda stop: run_comparison(config, TurnLines(console), stop), "This round is given up")
    if result is None:
        ctx.exit(INTERRUPTED)
    console.print()
    console.print(tables(result))
    if json_file == "-":
        sys.stdout.buffer.write(result.as_json())
    else:
        path = Path(json_file or _default_report(result))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result.as_json())
        console.print(f"Report: {path}", markup=False, soft_wrap=True)
    if result.interrupted:
        ctx.exit(INTERRUPTED)


def _default_report(result: "Comparison") -> str:
    stamp = result.started_at[:19].replace("-", "").replace(":", "").replace("T", "-")
    return f"reports/compare-{stamp}.json"
