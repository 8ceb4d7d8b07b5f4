"""`efserve doctor`: options -> DoctorJob -> diagnose -> a table or JSON; ends with 1 when there is a problem."""

from typing import TYPE_CHECKING

import click

from efserve.commands._output import print_json
from efserve.inspection.doctor.diagnose import DoctorJob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from efserve.inspection.doctor.diagnose import Diagnosis, Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "not applicable": "dim"}


@click.command()
@click.option(
    "--deadline-s",
    type=click.FloatRange(0, min_open=True),
    default=DoctorJob().deadline_s,
    show_default=True,
    help="How long the driver and each library may take to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(deadline_s: float, as_json: bool) -> None:
    """Check what serving and sharing need on this machine, and say how to mend it.

    Changes nothing. Drivers and libraries are asked in processes of their own, so that one that hangs or crashes is one
    line. Ends with 1 when there is a problem; warnings and what does not apply here are none.
    """
    from efserve.inspection.doctor.diagnose import diagnose
    from efserve.inspection.doctor.verdict import State

    diagnosis = diagnose(DoctorJob(deadline_s))
    if as_json:
        print_json(diagnosis)
    else:
        from efserve.console import out

        show(diagnosis, out())
    if diagnosis.count(State.PROBLEM):
        raise SystemExit(1)


def show(diagnosis: "Diagnosis", console: "Console") -> None:
    """The findings as a table per area, and what efserve can do here."""
    from rich.markup import escape
    from rich.table import Table

    from efserve.inspection.doctor.verdict import State

    for area in dict.fromkeys(finding.area for finding in diagnosis.findings):
        table = Table(box=None, show_header=False, pad_edge=False, title=area, title_style="bold", title_justify="left")
        table.add_column(no_wrap=True, min_width=14)
        table.add_column(overflow="fold")
        for checks, finding in _folded([finding for finding in diagnosis.findings if finding.area == area]):
            style = _STYLES[finding.state.value]
            text = f"[{style}]{finding.state.value}[/]: {escape(finding.found)}"
            mend = f"\n[italic]-> {escape(finding.advice)}[/]" if finding.advice else ""
            table.add_row(checks, text + mend)
        console.print(table, "")
    for ability in diagnosis.abilities:
        console.print(f"Here efserve {escape(ability)}.")
    problems, warnings = diagnosis.count(State.PROBLEM), diagnosis.count(State.WARNING)
    console.print(f"{_number(problems, 'problem')}, {_number(warnings, 'warning')}.".capitalize())


def _folded(findings: "Sequence[Finding]") -> "Iterator[tuple[str, Finding]]":
    """The findings with what to call them; checks that do not apply for one and the same reason are one."""
    from efserve.inspection.doctor.verdict import State

    alike: dict[object, list[Finding]] = {}
    for finding in findings:
        key = finding.found if finding.state is State.NOT_APPLICABLE and not finding.advice else finding.check
        alike.setdefault((finding.state, key), []).append(finding)
    for first, *others in alike.values():
        names = [first.check, *(other.check for other in others)]
        yield ", ".join(names) if len(names) < 3 else f"{first.check} and {len(others)} more", first


def _number(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"
