"""`efserve profile --roofline`: runs it, then prints tables or JSON and draws the picture."""

from typing import TYPE_CHECKING, Any

import click

from efserve.commands._output import print_json
from efserve.errors import INTERRUPTED, UsageError
from efserve.profiler.options import ProfileConfig

if TYPE_CHECKING:
    from efserve.profiler.roofline import RooflineResult


def check_roofline(config: ProfileConfig) -> None:
    """Raise UsageError, before anything is measured, where the options ask for a roofline that there cannot be."""
    from efserve.repository import ENGINE_FILES

    if config.json and (config.grid or config.pairs):
        raise UsageError("--json prints one result: run --roofline --json by itself, after the other")
    if config.engine and not any(ENGINE_FILES[engine].endswith(".onnx") for engine in config.engine):
        raise UsageError(f"--engine {config.engine[0]}: the roofline reads ONNX files only; leave --engine out")


def show_roofline(config: ProfileConfig) -> tuple[str, ...]:
    """Count, measure and print; a sentence for each model that could not be counted."""
    from efserve.console import err
    from efserve.profiler.roofline import run

    try:
        with err().status("") as status:
            result = run(config, lambda step: status.update(f"Roofline: {step} ..."))
    except KeyboardInterrupt:
        click.echo("Interrupted before the roofline was known; the same command begins afresh.", err=True)
        click.get_current_context().exit(INTERRUPTED)
    _print(result, config)
    return result.failures


def _print(result: "RooflineResult", config: ProfileConfig) -> None:
    from efserve.console import err, out
    from efserve.reports.roofline_plot import plot_roofline
    from efserve.reports.roofline_table import ceiling_lines, ceilings_table, model_lines, model_table

    console = err() if config.json else out()
    console.print(ceilings_table(result.ceilings))
    for line in ceiling_lines(result.ceilings):
        console.print(line, markup=False)
    for model in result.models:
        console.print()
        console.print(model_table(model))
        for line in model_lines(model):
            console.print(line, markup=False)
    for sentence in (*result.skipped, *result.failures):
        err().print(sentence, markup=False)
    if config.plot:
        path = config.output / result.slug / "roofline.png"
        plot_roofline(result.ceilings, result.models, path)
        console.print(f"\n-> {path}", markup=False, soft_wrap=True)
    if config.json:
        print_json(_whole(result))


def _whole(result: "RooflineResult") -> dict[str, object]:
    return {
        "device": result.slug,
        "ceilings": result.ceilings,
        "ridge_operations_per_byte": result.ceilings.ridge,
        "models": [
            {
                "model": model.model,
                "version": model.version,
                "engine": model.engine,
                "inputs": model.inputs,
                "compute_bound_from": model.compute_bound_from,
                "remark": model.remark,
                "points": [{**_fields(point), "achieved_pct": point.achieved_pct} for point in model.points],
            }
            for model in result.models
        ],
        "failures": result.failures,
        "skipped": result.skipped,
    }


def _fields(value: Any) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(value)
    return fields
