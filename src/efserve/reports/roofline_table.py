"""Rooflines for people: the ceilings of a device, and each model's figures over the batch."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from efserve.reports.tables import PlainTable
from efserve.roofline import Ceiling, Ceilings, ModelRoofline

DISTURBED_PCT = 90.0  # of the time of its cores, below which a measurement was disturbed


def ceilings_table(ceilings: Ceilings) -> Table:
    """One line per ceiling: the best repetition, how near the median comes, and what was run."""
    table = _table(f"{ceilings.device}, {ceilings.part}, {ceilings.library}")
    table.add_column("ceiling", no_wrap=True)
    table.add_column("best", justify="right", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("measured by")
    for name, ceiling, unit in _named(ceilings):
        table.add_row(name, f"{_short(ceiling.per_s / 1e9)} {unit}", f"{_median_pct(ceiling):.0f}%", ceiling.how)
    return table


def ceiling_lines(ceilings: Ceilings) -> list[str]:
    """The ridge point, and a warning where the measurement was disturbed."""
    ridge = f"Ridge point: {ceilings.ridge:.1f} operations per byte of memory"
    if ceilings.cache is not None:
        ridge += (
            f", {ceilings.peak / ceilings.cache.per_s:.1f} per byte of the {_megabytes(ceilings.cache_bytes)} cache"
        )
    lines = [f"{ridge} (FP32)."]
    disturbed = [f"{name} {c.cpu_pct:.0f}%" for name, c, _ in _named(ceilings) if c.cpu_pct < DISTURBED_PCT]
    if disturbed:
        lines.append(
            f"~ Others used the cores meanwhile; the measurements got only this part of their time: "
            f"{', '.join(disturbed)}. A ceiling that is too low makes a model look too good."
        )
    return lines


def model_table(model: ModelRoofline) -> Table:
    """One line per batch; at most 60 columns wide."""
    inputs = ", ".join(f"{name} {shape}" for name, shape in model.inputs.items())
    table = _table(f"{model.model} {model.version}, {model.engine}, {inputs}")
    for column in ("batch", "MB", "op/B", "bound", "most/s", "inf/s", "part"):
        table.add_column(column, justify="right", no_wrap=True)
    for point in model.points:
        measured, part = point.measured_rows_per_s, point.achieved_pct
        table.add_row(
            str(point.batch),
            _short(point.cost.fused_bytes / 1e6),
            _short(point.intensity),
            point.bound,
            _short(point.most_rows_per_s),
            "-" if measured is None else _short(measured),
            "-" if part is None else f"{_short(part)}%",
        )
    return table


def model_lines(model: ModelRoofline) -> list[str]:
    """Size, operations, from where it is compute-bound, and what its figures do not hold."""
    first, last = model.points[0], model.points[-1]
    cost = first.cost
    per_row = f"{_counted(cost.total_operations / first.batch)} operations per row"
    unfused = [f"{_short(point.unfused_intensity)} at batch {point.batch}" for point in (first, *model.points[1:][-1:])]
    lines = [
        f"{_counted(cost.parameters)} parameters, {_megabytes(cost.weight_bytes)} of weights per batch; {per_row}, "
        f"of them {_counted(cost.macs / first.batch)} multiply-accumulates.",
        f"Without any fusion, operations per byte are {', '.join(unfused)}.",
    ]
    if not model.compute_bound_from:
        lines.append(f"Never compute-bound up to batch {last.batch}.")
    elif model.compute_bound_from == first.batch:
        lines.append("Always compute-bound." if first.batch == 1 else f"Compute-bound at batch {first.batch} already.")
    else:
        lines.append(f"Compute-bound from batch {model.compute_bound_from} on.")
    if cost.guessed:
        lines.append(f"! Not known, counted as elementwise: {_names(cost.guessed)}.")
    if cost.left_out:
        lines.append(f"! Not counted, so the figures are too low by what they do: {_names(cost.left_out)}.")
    if model.remark:
        lines.append(f"Nothing to compare with: {model.remark}.")
    return lines


def _named(ceilings: Ceilings) -> Iterator[tuple[str, Ceiling, str]]:
    """Every ceiling with its name and its unit, a billion of which is the figure."""
    for precision, ceiling in ceilings.peaks.items():
        yield f"{precision} peak", ceiling, "Gop/s"
    yield "memory", ceilings.memory, "GB/s"
    if ceilings.cache is not None:
        yield "cache", ceilings.cache, "GB/s"


def _median_pct(ceiling: Ceiling) -> float:
    return 100 * ceiling.median_per_s / ceiling.per_s


def _names(kinds: Mapping[str, int]) -> str:
    return ", ".join(kind if number == 1 else f"{kind} ({number} times)" for kind, number in kinds.items())


def _counted(number: float) -> str:
    """Three digits and a word: 25.5 million."""
    for unit, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{number / unit:.3g}{word}"
    return f"{number:,.0f}"


def _megabytes(number: float) -> str:
    return f"{_short(number / 1e6)} MB"


def _short(value: float) -> str:
    """Three digits, never in exponents."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.6f}"


def _table(title: str) -> Table:
    return PlainTable(title)
