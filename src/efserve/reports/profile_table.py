"""Profiles for people: the table of one profile and the sentences that name its best rows."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from rich.table import Table
from rich.text import Text

from efserve.profiles import (
    QUIET_OTHERS_PCT,
    STEADY_CI_PCT,
    Knees,
    ProfileFacts,
    ProfileRow,
    best_by_throughput,
    best_under_slo,
)
from efserve.reports.tables import PlainTable

WIDTH = 80
WIDE = ("mean ms", "p90 ms", "MB")  # left out on a narrower terminal


def profile_table(facts: ProfileFacts, rows: Sequence[ProfileRow], slo_ms: float | None, width: int = WIDTH) -> Table:
    """One line per (share, batch), the best ones marked; at most 80 columns wide, fewer where `width` is less."""
    title = Text(profile_title(facts), style="bold")
    table = PlainTable(title)
    names = [name for name in _cells(rows[0]) if width >= WIDTH or name not in WIDE]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    best, under_slo = best_by_throughput(rows), None if slo_ms is None else best_under_slo(rows, slo_ms)
    for at, row in enumerate(rows):
        marks = [mark for mark, marked in (("*", best), ("<", under_slo)) if marked is row]
        marks += ([] if row.is_steady else ["~"]) + ([] if row.is_quiet else ["!"])
        marks += ["^"] if row.is_throttled else []
        is_last_of_share = at + 1 < len(rows) and rows[at + 1].share_pct != row.share_pct
        cells = _cells(row)
        table.add_row(*(cells[name] for name in names), "".join(marks), end_section=is_last_of_share)
    return table


def _cells(row: ProfileRow) -> dict[str, str]:
    """Column -> what stands in it."""
    rate = row.throughput_per_s
    return {
        "share": f"{row.share_pct:g}%",
        "batch": str(row.batch),
        "mean ms": decimals(row.mean_ms),
        "p50 ms": decimals(row.p50_ms),
        "p90 ms": decimals(row.p90_ms),
        "p99 ms": decimals(row.p99_ms),
        "inf/s": f"{rate:,.0f}" if rate >= 100 else decimals(rate),
        "util %": f"{row.utilization_pct if row.gpu_util_pct is None else row.gpu_util_pct:.0f}",
        "MB": f"{row.peak_memory_mb if row.device_memory_mb is None else row.device_memory_mb:.0f}",
    }


def profile_title(facts: ProfileFacts) -> str:
    """What was measured and on what, in one line."""
    cores = "1 core" if facts.total_cores == 1 else f"{facts.total_cores} cores"
    device = facts.gpu or f"{facts.cpu_model} with {cores}"
    return f"{facts.model} {facts.version}, {facts.engine_version}, {device}"


def cold_start_line(rows: Sequence[ProfileRow]) -> str:
    """How long fresh workers took until READY, and for their first batch then, over the shares."""
    ready_s = _span([row.ready_s for row in rows])
    first_ms = _span([row.first_ms for row in rows])
    return f"Cold start: {ready_s} s until ready; the first inference takes {first_ms} ms with the way to the worker."


def _span(values: Sequence[float]) -> str:
    low, high = decimals(min(values)), decimals(max(values))
    return low if low == high else f"{low} to {high}"


def knee_line(found: Knees) -> str:
    """Up to which share more of the device pays: of the model, and of its batches where they differ."""
    line = f"Knee: up to a share of {found.share_pct:g}% more of the device pays"
    if set(found.by_batch.values()) == {found.share_pct}:
        return f"{line}, at every batch."
    runs = [(pct, [batch for batch, _ in run]) for pct, run in groupby(found.by_batch.items(), itemgetter(1))]
    parts = [f"{f'{run[0]} to {run[-1]}' if len(run) > 1 else run[0]}: {pct:g}%" for pct, run in runs]
    return f"{line}; by batch {', '.join(parts)}."


def best_lines(rows: Sequence[ProfileRow], slo_ms: float | None) -> list[str]:
    """The best (batch, share) by throughput, the best within the SLO, and what the marks of the table mean."""
    lines = []
    if (best := best_by_throughput(rows)) is not None:
        lines.append(f"* Most throughput: {_point(best)}.")
    if slo_ms is not None:
        under_slo = best_under_slo(rows, slo_ms)
        lines.append(
            f"< With p99 within {slo_ms:g} ms: {_point(under_slo)}."
            if under_slo is not None
            else f"No batch has its p99 within {slo_ms:g} ms; the fastest is {_point(min(rows, key=_p99_ms))}."
        )
    if not all(row.is_steady for row in rows):
        lines.append(f"~ Unsteady: the median is known less well than within {STEADY_CI_PCT:g}%.")
    if not all(row.is_quiet for row in rows):
        lines.append(f"! Other processes used more than {QUIET_OTHERS_PCT:g}% of the machine meanwhile.")
    if any(row.is_throttled for row in rows):
        reasons = sorted({reason for row in rows if row.is_throttled for reason in row.throttle.split("+")})
        lines.append(f"^ Throttled meanwhile: {', '.join(reasons)}.")
    return lines


def _p99_ms(row: ProfileRow) -> float:
    return row.p99_ms


def _point(row: ProfileRow) -> str:
    rate, p99 = f"{row.throughput_per_s:,.0f}", decimals(row.p99_ms)
    return f"batch {row.batch} on a share of {row.share_pct:g}%, {rate} inf/s, p99 {p99} ms"


def decimals(value: float) -> str:
    """About four significant digits, never in exponents: 0.0513, 1.234, 123.4, 1234."""
    for limit, digits in ((1, 4), (10, 3), (100, 2), (1000, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"
