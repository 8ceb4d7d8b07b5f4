"""`efserve report`: files in, reports out, one sentence for what cannot be read or written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench_results import HOSTILE, closed_result, hostile_result
from efserve.cli import main
from efserve.records import BenchResult, LevelResult, encode_result
from efserve.reports.markdown import as_markdown


def file_of(result: BenchResult, folder: Path, name: str = "run.json") -> str:
    path = folder / name
    path.write_bytes(encode_result(result))
    return str(path)


def report(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments])


def test_tables_are_printed_without_options(tmp_path: Path) -> None:
    done = report(file_of(closed_result(), tmp_path))
    assert done.exit_code == 0
    assert "run.json: resnet50 on efserve" in done.stdout
    assert "Throughput, and latency in ms" in done.stdout


def test_figures_are_made_anew_from_the_records(tmp_path: Path) -> None:
    result = closed_result()
    forged = replace(result.levels[0].statistics, inferences_per_s=999_999.0)
    levels = (LevelResult(result.levels[0].record, forged), *result.levels[1:])
    done = report(file_of(replace(result, levels=levels), tmp_path))
    assert done.exit_code == 0
    assert "999999" not in done.stdout


def test_two_files_are_compared(tmp_path: Path) -> None:
    files = file_of(closed_result(), tmp_path, "a.json"), file_of(closed_result(seed=5), tmp_path, "b.json")
    done = report(*files)
    assert "b.json against a.json" in done.stdout
    assert "noise" in done.stdout


def test_all_reports_are_written_at_once(tmp_path: Path) -> None:
    places = {name: tmp_path / "made" / f"r.{name}" for name in ("html", "csv", "md")}
    options = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    done = report(file_of(hostile_result(), tmp_path), *options)
    assert done.exit_code == 0
    assert done.stdout == ""
    assert places["html"].read_text().startswith("<!doctype html>")
    assert places["csv"].read_text().startswith("Request Rate,Inferences/Second")
    assert places["md"].read_text().startswith("## ")


def test_one_report_may_go_to_stdout(tmp_path: Path) -> None:
    file = file_of(closed_result(), tmp_path)
    assert report(file, "--csv", "-").stdout.startswith("Concurrency,")
    done = report(file, "--csv", "-", "--md", "-")
    assert done.exit_code == 2
    assert done.stderr == "Error: --csv and --md cannot all have stdout: give file names\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"{}", "not a result file of `efserve bench`"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b"\xff", "not a result file of `efserve bench`"),
    ],
)
def test_what_is_no_result_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    done = report(str(path))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: {path}: ")
    assert message in done.stderr


def damaged(**changes: Any) -> BenchResult:
    """A result whose second level has a record with other fields."""
    result = closed_result()
    broken = LevelResult(replace(result.levels[1].record, **changes), result.levels[1].statistics)
    return replace(result, levels=(result.levels[0], broken))


FIRST, SECOND = (level.record.requests for level in closed_result().levels[:2])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (replace(closed_result(), levels=()), "the result file has no levels"),
        (damaged(windows=()), "level 2 is damaged: 3 of 0 windows are reported"),
        (damaged(reported=4), "level 2 is damaged: 4 of 3 windows are reported"),
        (damaged(models=()), "level 2 is damaged: 0 models with 1 server statistics"),
        (damaged(requests=replace(SECOND, delay_us=FIRST.delay_us)), "arrays of different lengths"),
    ],
)
def test_damaged_files_are_refused(result: BenchResult, message: str, tmp_path: Path) -> None:
    done = report(file_of(result, tmp_path))
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = file_of(closed_result(), tmp_path)
    done = report(file, "--html", f"{file}/x.html")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: cannot write {file}/x.html: ")


def test_markdown_escapes_what_is_not_its_own() -> None:
    text = as_markdown([hostile_result()], ["a|b.json"])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {19, 10}  # of the levels, and of the models
    assert HOSTILE not in text
    assert "\\<script\\>" in text
    assert "a\\|b.json" in text
