"""Measured pairs for people: a line for each two models on their shares, over all batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean

from rich.table import Table
from rich.text import Text

from efserve.pairs import MeasuredPair, Pairs
from efserve.profiles import QUIET_OTHERS_PCT
from efserve.reports.tables import PlainTable

WIDTH = 80  # of the whole table


@dataclass(frozen=True, slots=True)
class PairLine:
    """One model on a share beside another: the mean slowdown over their batches, and where it was worst."""

    me: str
    my_pct: float
    you: str
    your_pct: float
    mean: float  # geometric
    cpu_mean: float | None  # the same in processor time
    worst: MeasuredPair


def pair_lines(pairs: Sequence[MeasuredPair]) -> list[PairLine]:
    """A line for each two models and shares, in the order of their names."""
    ordered = sorted(pairs, key=_group)
    lines = []
    for (me, you, my_pct, your_pct), run in groupby(ordered, key=_group):
        group = list(run)
        worst = max(group, key=_slowdown)
        in_cpu_time = [pair.cpu_slowdown for pair in group if pair.cpu_slowdown]
        cpu_mean = geometric_mean(in_cpu_time) if in_cpu_time else None
        mean = geometric_mean(map(_slowdown, group))
        lines.append(PairLine(me, my_pct, you, your_pct, mean, cpu_mean, worst))
    return lines


def _group(pair: MeasuredPair) -> tuple[str, str, float, float]:
    return (pair.me, pair.you, pair.my_pct, pair.your_pct)


def _slowdown(pair: MeasuredPair) -> float:
    return pair.slowdown


def pairs_title(pairs: Pairs) -> str:
    """What was measured and on what, in one line."""
    facts = pairs.facts
    device = facts.gpu or f"{facts.cpu_model} with {facts.total_cores} cores"
    return f"Slowdown beside another model, both saturated, {device}"


def pairs_table(pairs: Pairs, width: int = WIDTH) -> Table:
    """How many times as long a batch of each model takes beside another; at most 80 columns for short names.

    Where `width` is less, the quartiles and batches of the worst are left out.
    """
    title = Text(pairs_title(pairs), style="bold")
    table = PlainTable(title)
    for column in ("model", "beside"):
        table.add_column(column, overflow="fold")
        table.add_column("share", justify="right", no_wrap=True)
    is_wide = width >= WIDTH
    for column in ("mean", "cpu", "worst", *(("quartiles", "batches") if is_wide else ()), "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in pair_lines(pairs.pairs):
        worst = line.worst
        table.add_row(
            Text(line.me),
            f"{line.my_pct:.3g}%",
            Text(line.you),
            f"{line.your_pct:.3g}%",
            f"{line.mean:.2f}",
            "" if line.cpu_mean is None else f"{line.cpu_mean:.2f}",
            f"{worst.slowdown:.2f}",
            *((f"{worst.low:.2f}-{worst.high:.2f}", f"{worst.my_batch}, {worst.your_batch}") if is_wide else ()),
            f"{worst.beside_p99_ms / worst.alone_p99_ms:.2f}",
        )
    return table


def pairs_remarks(pairs: Pairs) -> list[str]:
    """What the columns mean, and what to think of the figures."""
    lines = [
        "mean: over all batches; cpu: the same in processor time; then where it was worst, and how p99 grew there."
    ]
    disturbed = [pair for pair in pairs.pairs if pair.others_pct > QUIET_OTHERS_PCT]
    if disturbed:
        lines.append(
            f"! While {len(disturbed)} of {len(pairs.pairs)} were measured, other processes used more than "
            f"{QUIET_OTHERS_PCT:g}% of the machine."
        )
    if len(pairs.facts.models) == 1:
        (name,) = pairs.facts.models
        lines.append(f"Only {name} was measured, beside itself: plans need at least two pairs of models.")
    return lines
