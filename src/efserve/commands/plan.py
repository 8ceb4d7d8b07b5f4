"""`efserve plan`: options -> PlanConfig -> run -> tables, bars, plan.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.planning.options import PlanConfig

if TYPE_CHECKING:
    from efserve.planning.job import PlanResult
    from efserve.planning.plan import NoPlan


def _number_of(text: str) -> tuple[str, float]:
    """A model and a number, `MODEL=NUMBER`."""
    model, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not model or not 0 < value < float("inf"):
        raise click.BadParameter(f"{text!r} is no MODEL=NUMBER such as resnet50=200, with a number above 0")
    return model, value


def _devices(text: str) -> tuple[int, str]:
    """How many devices, and of which kind: `COUNT` or `COUNTxNAME`; nothing: this machine's."""
    if not text:
        return 0, ""
    count, _, kind = text.partition("x")
    if not count.isdecimal() or int(count) < 1 or (not kind and "x" in text):
        raise click.BadParameter(f"{text!r} is no COUNT or COUNTxNAME such as 4 or 4xa100")
    return int(count), kind


@click.command()
@click.option("--rate", type=_number_of, metavar="MODEL=RPS", multiple=True, help="Requests per second; repeatable.")
@click.option(
    "--slo", type=_number_of, metavar="MODEL=MS", multiple=True, help="Longest latency, end to end, in ms; repeatable."
)
@click.option(
    "--workload",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML or JSON file of models and applications with their rates and SLOs, as docs/scheduling.md tells.",
)
@click.option(
    "--devices",
    type=_devices,
    metavar="COUNT[xNAME]",
    default="",
    help="Devices to plan for, of a kind that has a folder of profiles; this machine need not have them.  "
    "[default: this machine's]",
)
@click.option(
    "--memory",
    "memory_mb",
    type=click.FloatRange(0),
    default=0.0,
    metavar="MB",
    help="Memory of one device; at most 90 % of it is planned.  [default: this machine's, no limit for others]",
)
@shared.profiles("Folder of profiles, as `efserve profile` writes it.")
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "int8"]),
    multiple=True,
    help="MODEL_fp16 and so on may run in the place of MODEL, which changes its answers a little; repeatable.",
)
@click.option(
    "--policy",
    type=click.Choice(["best", "gpulet", "temporal", "static", "exhaustive"]),
    default="best",
    show_default=True,
    help="How to look for a plan; docs/scheduling.md compares them.",
)
@click.option(
    "--max-partitions", type=click.IntRange(0), default=0, help="Most partitions on one device.  [default: no limit]"
)
@click.option(
    "--headroom",
    "headroom_pct",
    type=click.FloatRange(0, 10_000),
    default=0.0,
    show_default=True,
    metavar="PCT",
    help="Plan for rates that are higher by so much.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="poisson: load partitions only so far that bursts make 1 % late at most; constant: up to what they carry.",
)
@click.option(
    "--objective",
    type=click.Choice(["devices", "goodput", "spread"]),
    default="devices",
    show_default=True,
    help="As few devices as possible; as much as all devices carry; or the partitions evenly over all devices.",
)
@shared.budget
@shared.neighbours
@click.option(
    "--check",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PLAN",
    help="Make no plan: tell whether this one holds.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PNG",
    help="Draw the shares of each device, and the load of each model, as a picture.",
)
@click.option("--json", is_flag=True, help="Print the plan as JSON on stdout; the tables go to stderr.")
def command(**options: Any) -> None:
    """Pack models on partitions of devices so that every rate and SLO holds.

    Works from the profiles of `efserve profile --grid`. Prints what each model gets, a bar for each device, and what
    breaks first when rates rise. Demands that cannot be met end with the reason and the nearest that can.
    """
    from efserve.planning.job import run
    from efserve.planning.plan import NoPlan

    config = PlanConfig(**options)
    if config.plot:
        from efserve.reports.profile_plot import require_matplotlib

        require_matplotlib()
    try:
        result = run(config)
    except NoPlan as error:
        _print_shortfalls(error)
        raise
    _print(result, config)
    if result.wrong:
        click.get_current_context().exit(1)


def _print_shortfalls(error: "NoPlan") -> None:
    """The nearest possible demand of each model that a plan was refused for."""
    from efserve.reports.plan_table import plain

    for shortfall in error.shortfalls:
        if (nearest := shortfall.nearest) is not None:
            click.echo(
                f"{nearest.model}: nearest possible: {plain(nearest.rate_per_s)} req/s within {nearest.slo_ms:.4g} ms",
                err=True,
            )


def _print(result: "PlanResult", config: PlanConfig) -> None:
    """Tables and bars, then the verdict or the file; with --json the plan on stdout."""
    from efserve.console import err, out
    from efserve.planning.plan import plan_json
    from efserve.reports.plan_table import breaks_first, device_bars, models_table, placements_table

    console = err() if config.json else out()
    console.print(models_table(result.plan))
    console.print()
    console.print(placements_table(result.plan))
    console.print()
    for bar in device_bars(result.plan, console.width):
        console.print(bar, soft_wrap=True)
    console.print(f"\n{breaks_first(result.plan)}", markup=False)
    if (fitted := result.interference) is not None:
        error = (
            " (only one pair of models was measured: its error is not known)"
            if fitted.error_pct is None or fitted.p90_error_pct is None
            else (
                f": predictions for pairs left out of the fit are off by {fitted.error_pct:.1f} % on average, "
                f"{fitted.p90_error_pct:.1f} % at most for 90 % of them"
            )
        )
        console.print(
            f"Interference: {len(fitted.measured)} measured pairs count as they were measured, others by the linear "
            f"model{error}.",
            markup=False,
        )
    for sentence in result.wrong:
        console.print(f"Does not hold: {sentence}", markup=False, soft_wrap=True)
    if config.check and not result.wrong:
        console.print("The plan holds: shares, partitions, memory, capacity and worst-case latency.")
    if config.plot:
        from efserve.reports.plan_plot import plot_plan

        plot_plan(result.plan, config.plot)
        console.print(f"-> {config.plot}", markup=False, soft_wrap=True)
    if config.output:
        console.print(f"-> {config.output}", markup=False, soft_wrap=True)
    if config.json:
        click.echo(plan_json(result.plan), nl=False)
