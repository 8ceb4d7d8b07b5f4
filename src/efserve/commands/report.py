"""`efserve report`: options -> ReportJob -> tables, or HTML, CSV and Markdown files."""

from typing import TYPE_CHECKING

import click

from efserve.commands._output import write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efserve.records import BenchResult
    from efserve.reports.report import ReportJob


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--html", default="", metavar="FILE", help="Write a page that stands alone; - for stdout.")
@click.option("--csv", default="", metavar="FILE", help="Write a row per level, perf_analyzer's columns first.")
@click.option("--md", default="", metavar="FILE", help="Write tables in Markdown.")
def command(files: tuple[str, ...], html: str, csv: str, md: str) -> None:
    """Make reports from result files of `efserve bench`.

    Everything is computed anew from the raw records in the files. Without options the tables are printed. With several
    files the later ones are compared with the first, level by level: each difference with its 95 % interval, and the
    word "noise" where that includes no difference.
    """
    from efserve.console import err
    from efserve.reports.report import ReportJob, load, written

    job = ReportJob(files, html, csv, md)
    results = load(job)
    for place, text in written(job, results).items():
        write_report(text.encode(), place, err())
    if not (html or csv or md):
        _print(job, results)


def _print(job: "ReportJob", results: "Sequence[BenchResult]") -> None:
    from efserve.console import out
    from efserve.reports.bench import tables
    from efserve.reports.differences import differences
    from efserve.reports.differences_table import differences_table
    from efserve.reports.levels import plain

    console = out()
    for name, result in zip(job.names, results, strict=True):
        about = f"{name}: {result.target.model} on {result.target.server_name}, {result.started_at}"
        console.print(plain(about), markup=False, style="bold")
        console.print(tables(result))
        console.print()
    for name, result in zip(job.names[1:], results[1:], strict=True):
        console.print(differences_table(differences(results[0], result), job.names[0], name))
        console.print()
