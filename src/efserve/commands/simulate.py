"""`efserve simulate`: options -> SimulateConfig -> run -> tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.commands._output import print_json
from efserve.simulator.job import SimulateConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from efserve.simulator.events import Outcomes
    from efserve.simulator.job import Limit


@click.command()
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@shared.profiles("Folder of the profiles that the plans were made from.")
@click.option(
    "--requests", type=click.IntRange(1), default=100_000, show_default=True, help="Requests of all models together."
)
@click.option(
    "--arrivals",
    type=click.Choice(["constant", "poisson", "gamma"]),
    default="poisson",
    show_default=True,
    help="How requests come at the planned rates.",
)
@click.option(
    "--cv",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Coefficient of variation of the gaps of gamma arrivals; more is burstier.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the arrivals from a file: a line of SECONDS,MODEL per request.",
)
@click.option(
    "--factor",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Let requests come so many times as fast as planned, or as in the trace.",
)
@click.option(
    "--late",
    type=click.Choice(["serve", "drop"]),
    default="drop",
    show_default=True,
    help="Requests that cannot keep their SLO any more, as in `efserve serve`: answered 503 at once, or all the same.",
)
@click.option(
    "--gateway-ms",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="MS",
    help="What a request takes besides its batch, on the way between client and worker; see docs/scheduling.md.",
)
@shared.neighbours
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same result.")
@click.option("--sweep", is_flag=True, help="Find the highest rates that each plan holds for 99 % of the requests.")
@click.option(
    "--policy",
    type=click.Choice(["best", "gpulet", "temporal", "static"]),
    multiple=True,
    help="With --sweep: plan the same demands by this too, for as much as the devices carry; repeatable.",
)
@shared.budget
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PNG",
    help="With --sweep: draw the part within the SLO over the rate.",
)
@click.option("--json", is_flag=True, help="Print the result as JSON on stdout; the tables go to stderr.")
def command(**options: Any) -> None:
    """Run plans on simulated devices and tell how many requests keep their SLO.

    The router and batch queues are those of the server; latencies are drawn from the profiles. With several PLANS and
    --sweep, compares plans by the highest load that they hold.
    """
    from efserve.console import err, out
    from efserve.errors import UsageError
    from efserve.simulator.events import Outcomes
    from efserve.simulator.job import run

    config = SimulateConfig(**options)
    if config.sweep and config.trace:
        raise UsageError("--sweep makes its own arrivals: give --trace or --sweep, not both")
    if (config.policy or config.plot) and not config.sweep:
        raise UsageError("--policy and --plot are about the highest rates: give --sweep too")
    if config.plot:
        from efserve.reports.profile_plot import require_matplotlib

        require_matplotlib()
    results = run(config)
    console = err() if config.json else out()
    for result in results:
        if isinstance(result, Outcomes):
            _print_outcomes(console, result)
    if limits := [result for result in results if not isinstance(result, Outcomes)]:
        console.print(_limits_table(limits))
        if config.plot:
            _plot(limits, config.plot)
            console.print(f"-> {config.plot}", markup=False, soft_wrap=True)
    if config.json:
        print_json(results)


def _print_outcomes(console: "Console", result: "Outcomes") -> None:
    """A table of models, one of partitions, and the sentence for the whole."""
    console.print(_models_table(result))
    console.print()
    console.print(_partitions_table(result))
    requests = sum(model.requests for model in result.models)
    console.print(f"\n{100 * result.within_slo:.2f} % of {requests:,} requests kept their SLO.", markup=False)
    verdict = "The plan holds" if result.holds else "The plan does not hold"
    console.print(f"{verdict} these arrivals: 99 % of each model's requests are wanted.\n", markup=False)


def _models_table(result: "Outcomes") -> "Table":
    table = _table(
        f"Simulated: {result.policy}", ("model", "requests", "in SLO %", "503", "good/s", "p50 ms", "p99 ms", "queue")
    )
    for model in result.models:
        within_pct = 100 * model.within_slo / model.requests if model.requests else 100.0
        table.add_row(
            model.model,
            f"{model.requests:,}",
            f"{within_pct:.2f}",
            f"{model.dropped:,}",
            f"{model.goodput_per_s:,.1f}",
            f"{model.p50_ms:.4g}",
            f"{model.p99_ms:.4g}",
            f"{model.max_queued:,}",
        )
    return table


def _partitions_table(result: "Outcomes") -> "Table":
    table = _table("Partitions", ("device", "share %", "busy %", "batches", "rows", "models"))
    for partition in result.partitions:
        table.add_row(
            partition.device,
            f"{partition.share_pct:.3g}",
            f"{100 * partition.utilization:.0f}",
            f"{partition.batches:,}",
            f"{partition.mean_batch:.1f}",
            " ".join(partition.models),
        )
    return table


def _limits_table(limits: Sequence["Limit"]) -> "Table":
    table = _table("Highest load with 99 % within the SLO of each model", ("plan", "policy", "times planned", "req/s"))
    for limit in limits:
        rate = f"{limit.rate_per_s:,.1f}"
        table.add_row(limit.plan or "(for the most)", limit.policy, f"{limit.factor:.2f}", rate)
    return table


def _plot(limits: Sequence["Limit"], path: Path) -> None:
    """A curve per plan."""
    from efserve.reports.plan_plot import plot_sweep
    from efserve.simulator.events import ENOUGH

    plot_sweep(
        [
            (
                f"{Path(limit.plan).name} ({limit.policy})" if limit.plan else limit.policy,
                [(each.rate_per_s, 100 * each.within_slo) for each in limit.tried],
            )
            for limit in limits
        ],
        100 * ENOUGH,
        path,
    )


def _table(title: str, columns: Sequence[str]) -> "Table":
    """A plain table whose words are on the left and whose numbers are on the right."""

    from efserve.reports.tables import PlainTable

    table = PlainTable(title)
    for column in columns:
        is_word = column in ("model", "models", "device", "plan", "policy")
        table.add_column(column, justify="left" if is_word else "right", overflow="fold" if is_word else "ellipsis")
    return table
