"""Reports from result files: everything is computed anew from their raw records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efserve.errors import UsageError
from efserve.records import BenchResult, LevelRecord, LevelResult, read_result
from efserve.reports.csv_table import many_as_csv
from efserve.reports.levels import recomputed
from efserve.reports.markdown import as_markdown
from efserve.reports.page import render


@dataclass(frozen=True, slots=True)
class ReportJob:
    """The result files, and where reports go: "" for nowhere, "-" for stdout."""

    files: tuple[str, ...]
    html: str = ""
    csv: str = ""
    md: str = ""

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        to_stdout = [f"--{name}" for name in ("html", "csv", "md") if getattr(self, name) == "-"]
        if len(to_stdout) > 1:
            raise UsageError(f"{' and '.join(to_stdout)} cannot all have stdout: give file names")

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the files, or their paths where the short ones are not enough to tell them apart."""
        short = tuple(Path(file).name for file in self.files)
        return short if len(set(short)) == len(short) else self.files


def load(job: ReportJob) -> list[BenchResult]:
    """The results in the files, with all figures made anew. Raises UsageError for a file that is no result file."""
    job.check()
    return [recomputed(_checked(read_result(Path(file)), file)) for file in job.files]


def written(job: ReportJob, results: Sequence[BenchResult]) -> dict[str, str]:
    """The reports that were asked for: where each goes, and its text."""
    makers = {"html": render, "csv": many_as_csv, "md": as_markdown}
    return {getattr(job, name): make(results, job.names) for name, make in makers.items() if getattr(job, name)}


def _checked(result: BenchResult, file: str) -> BenchResult:
    """The result, if its parts fit together; what `efserve bench` writes always does."""
    if not result.levels:
        raise UsageError(f"{file}: the result file has no levels")
    for number, level in enumerate(result.levels, 1):
        wrong = _wrong(level)
        if wrong:
            raise UsageError(f"{file}: level {number} is damaged: {wrong}")
    return result


def _wrong(level: LevelResult) -> str:
    record = level.record
    if not record.windows or not 1 <= record.reported <= len(record.windows):
        return f"{record.reported} of {len(record.windows)} windows are reported"
    if any(window.end_us <= window.start_us for window in record.windows):
        return "a window ends before it begins"
    return _wrong_requests(record)


def _wrong_requests(record: LevelRecord) -> str:
    requests, models = record.requests, len(record.models)
    sizes = {array.size for array in (requests.end_us, requests.latency_us, requests.delay_us, requests.model)}
    if len(sizes) != 1:
        return f"its requests have arrays of different lengths: {sorted(sizes)}"
    if not models or len(record.server) != models:
        return f"{models} models with {len(record.server)} server statistics"
    if any(failed.model >= models for failed in record.failures) or int(np.max(requests.model, initial=0)) >= models:
        return f"a request is for a model beyond the {models} listed"
    if record.samples is not None and any(
        s.size != record.samples.time_us.size for s in record.samples.series.values()
    ):
        return "its samples have arrays of different lengths"
    return ""
