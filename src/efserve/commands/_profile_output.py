"""How `efserve profile` shows itself: a progress bar, tables and sentences, plots, JSON."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from efserve.commands._output import print_json
from efserve.profiler.options import ProfileConfig

if TYPE_CHECKING:
    from rich.console import Console

    from efserve.profiler.grid import ProfileResult
    from efserve.profiler.pair_runs import PairsResult
    from efserve.profiler.progress import Progress


@contextmanager
def progress_bar(console: "Console") -> Iterator[Callable[["Progress"], None]]:
    """A progress bar with the time left, on a terminal; remarks are printed above it."""
    from rich import progress as rich
    from rich.markup import escape

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(12),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    # A slow refresh: on a share of all cores the bar takes its time from what is measured.
    with rich.Progress(
        *columns, console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def on_progress(progress: "Progress") -> None:
            bar.update(
                task,
                completed=progress.done_rows,
                total=progress.total_rows,
                description=escape(progress.doing) if progress.doing else None,
            )
            if progress.remark:
                console.print(progress.remark, markup=False, soft_wrap=True)

        yield on_progress


def print_profiles(result: "ProfileResult", config: ProfileConfig) -> None:
    """A table with its best rows for each profile, then the files; with --json the values on stdout."""
    from efserve.console import err, out
    from efserve.profiles import knees
    from efserve.reports.profile_plot import plot_profile
    from efserve.reports.profile_table import best_lines, cold_start_line, knee_line, profile_table

    console = err() if config.json else out()
    for profile in result.profiles:
        console.print(profile_table(profile.facts, profile.rows, config.slo_ms, console.width))
        found = knees(profile.rows)
        lines = best_lines(profile.rows, config.slo_ms)
        for line in (*lines, *([knee_line(found)] if found else []), cold_start_line(profile.rows)):
            console.print(line, markup=False)
        files = [profile.target.csv_path]
        if config.plot:
            files.append(profile.target.csv_path.with_suffix(".png"))
            plot_profile(profile.facts, profile.rows, config.slo_ms, files[-1])
        console.print(f"-> {', '.join(map(str, files))}\n", markup=False, soft_wrap=True)
    if config.json:
        print_json(_whole(result, config.slo_ms))


def _whole(result: "ProfileResult", slo_ms: float | None) -> dict[str, object]:
    from efserve.profiles import best_by_throughput, best_under_slo, knees

    profiles = [
        {
            "csv": str(profile.target.csv_path),
            "facts": profile.facts,
            "rows": profile.rows,
            "best_by_throughput": best_by_throughput(profile.rows),
            "knee": knees(profile.rows),
            "best_under_slo": None if slo_ms is None else best_under_slo(profile.rows, slo_ms),
        }
        for profile in result.profiles
    ]
    return {"device": result.device, "slo_ms": slo_ms, "profiles": profiles, "failures": result.failures}


def print_pairs(result: "PairsResult", config: ProfileConfig) -> None:
    """The table of slowdowns, then the files; with --json the file's content on stdout."""
    from efserve.console import err, out
    from efserve.reports.pairs_plot import plot_pairs
    from efserve.reports.pairs_table import pairs_remarks, pairs_table

    console = err() if config.json else out()
    if result.content is not None and result.content.pairs:
        console.print(pairs_table(result.content, console.width))
        for line in pairs_remarks(result.content):
            console.print(line, markup=False)
        files = [result.path]
        if config.plot:
            files.append(result.path.with_suffix(".png"))
            plot_pairs(result.content, files[-1])
        console.print(f"-> {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    if config.json:
        print_json({"measured": result.content, "failures": result.failures})
