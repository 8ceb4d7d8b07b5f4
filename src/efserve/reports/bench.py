"""How people see a benchmark: the lines while it runs, the tables after it, the CSV for spreadsheets."""

import csv
import io
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from efserve.records import BenchResult, LevelResult, Load, Target
from efserve.stats import WindowFigures, chosen_latency_us

_HEADINGS = ("conc", "infer/s", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", "errors")
# perf_analyzer's names where a column means the same; times in us.
_CSV_COLUMNS = (
    "Concurrency",
    "Inferences/Second",
    "Requests/Second",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
    "p99.9 latency",
    "Max latency",
    "Avg latency",
    "Std latency",
    "Mean Batch",
    "Errors",
    "Client CPU",
    "Client Bound",
    "Stable",
)


class LiveLines:
    """One line per level while a benchmark runs; on a terminal the current one is written anew after each window.

    Lines, not a `rich.live` table: drawing that takes milliseconds in which answers would wait to be read.
    """

    def __init__(self, console: Console, rows_per_request: int) -> None:
        self._console = console
        self._rows = rows_per_request

    def on_target(self, target: Target) -> None:
        """Say what is measured, and head the columns."""
        version = f" version {target.model_version}" if target.model_version else ""
        server = f"{target.server_name} {target.server_version}".strip()
        where = "embedded server" if target.embedded else target.url
        self._line(f"{target.model}{version} on {server} ({where}), sending {'; '.join(target.inputs)}")
        self._line(f"{'conc':>6} {'infer/s':>12} {'latency us':>12} {'window':>7}  state")

    def on_level_start(self, load: Load) -> None:
        """The level is warming up."""
        self._current(f"{load.label:>6} {'':>12} {'':>12} {'':>7}  warm-up")

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None:
        """The figures of the window that is over."""
        rate = f"{figures.requests_per_s * self._rows:.1f}"
        self._current(f"{load.label:>6} {rate:>12} {figures.latency_us:>12.0f} {number:>7}  measuring")

    def on_level(self, result: LevelResult) -> None:
        """The figures of the level that is done."""
        statistics = result.statistics
        mean = f"{statistics.latency.mean_us:.0f}" if statistics.latency else "-"
        rate = f"{statistics.inferences_per_s:.1f}"
        windows = len(result.record.windows)
        self._line(f"{result.record.load.label:>6} {rate:>12} {mean:>12} {windows:>7}  {_state(result)}")

    def _current(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text.ljust(60), end="\r", markup=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self._console.print(text.ljust(60 if self._console.is_terminal else 0), markup=False, soft_wrap=True)


def _state(result: LevelResult) -> str:
    marks = ["stable" if result.record.stable else "unstable"]
    if result.statistics.client_bound:
        marks.append("client-bound")
    if result.statistics.errors:
        marks.append("errors")
    return ", ".join(marks)


def tables(result: BenchResult) -> RenderableType:
    """The final tables, at most 80 columns wide, and under them what the reader must know of single levels."""
    return Group(_latency_table(result.levels), *_server_table(result.levels), *_remarks(result.levels))


def _latency_table(levels: Sequence[LevelResult]) -> Table:
    table = _table("Throughput, and latency in ms", _HEADINGS)
    for level in levels:
        statistics, latency = level.statistics, level.statistics.latency
        times = ["-"] * 7
        if latency is not None:
            in_order = (latency.mean_us, latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us)
            times = [_ms(value) for value in (*in_order, latency.p99_9_us, latency.max_us)]
        errors = str(sum(statistics.errors.values()))
        rate = f"{statistics.inferences_per_s:.1f}"
        table.add_row(_marked(level), rate, *times, errors, style="" if level.record.stable else "yellow")
    return table


def _server_table(levels: Sequence[LevelResult]) -> Iterable[Table]:
    if not any(level.statistics.server for level in levels):
        return
    headings = ("conc", "queue", "input", "infer", "output", "batch", "req/s", "deviation", "client CPU")
    table = _table("The server's own split in ms, its mean batch; the client", headings)
    for level in levels:
        split, statistics = level.statistics.server, level.statistics
        parts = ["-"] * 5
        if split is not None:
            times = (split.queue_us, split.compute_input_us, split.compute_infer_us, split.compute_output_us)
            parts = [*(_ms(value) for value in times), f"{split.mean_batch:.2f}"]
        deviation = _ms(statistics.latency.deviation_us) if statistics.latency else "-"
        cpu = f"{100 * statistics.client_cpu_cores:.0f} %"
        table.add_row(_marked(level), *parts, f"{statistics.requests_per_s:.1f}", deviation, cpu)
    yield table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _marked(level: LevelResult) -> str:
    """The level, with `*` where a remark below the tables is about it."""
    remarkable = not level.record.stable or level.statistics.client_bound or level.statistics.errors
    return f"{level.record.load.label}{'*' if remarkable else ''}"


def _ms(value_us: float) -> str:
    milliseconds = value_us / 1e3
    return (
        f"{milliseconds:.3f}"
        if milliseconds < 10
        else f"{milliseconds:.2f}"
        if milliseconds < 100
        else f"{milliseconds:.0f}"
    )


def _remarks(levels: Iterable[LevelResult]) -> Iterable[Text]:
    for level in levels:
        name = f"* {level.record.load.kind} {level.record.load.label}: "
        if not level.record.stable:
            yield Text(f"{name}unstable: {level.record.reason}")
        if level.statistics.client_bound:
            cores = level.statistics.client_cpu_cores
            yield Text(f"{name}client-bound: the load generator used {cores:.2f} of a core; the server may do more")
        for kind, count in level.statistics.errors.items():
            text = next(failed.text for failed in level.record.failures if failed.kind == kind)
            yield Text(f"{name}{count} errors '{kind}', the first: {text.strip() or 'no text'}")


def closing_lines(result: BenchResult, percentile: int | None) -> list[str]:
    """One line per level in the words of perf_analyzer, whose readers look for them."""
    lines = []
    for level in result.levels:
        statistics = level.statistics
        latency = "-"
        if statistics.latency is not None:
            latency = f"{chosen_latency_us(statistics.latency, percentile):.0f}"
        lines.append(
            f"Concurrency: {level.record.load.label}, throughput: {statistics.inferences_per_s:.2f} infer/sec, "
            f"latency {latency} usec"
        )
    return lines


def as_csv(result: BenchResult) -> str:
    """A row per level; empty cells where a figure is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for level in result.levels:
        writer.writerow(_csv_row(level))
    return text.getvalue()


def _csv_row(level: LevelResult) -> list[str]:
    statistics, latency, split = level.statistics, level.statistics.latency, level.statistics.server
    server: list[float | None] = [None] * 4
    if split is not None:
        server = [split.queue_us, split.compute_input_us, split.compute_infer_us, split.compute_output_us]
    outside = None
    if latency is not None and split is not None:
        outside = latency.mean_us - sum(value for value in server if value is not None)
    times: list[float | None] = [None] * 8
    if latency is not None:
        percentiles = (latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.p99_9_us)
        times = [*percentiles, latency.max_us, latency.mean_us, latency.deviation_us]
    return [
        level.record.load.label,
        f"{statistics.inferences_per_s:.2f}",
        f"{statistics.requests_per_s:.2f}",
        *("" if value is None else f"{value:.0f}" for value in (outside, *server, *times)),
        "" if split is None else f"{split.mean_batch:.3f}",
        str(sum(statistics.errors.values())),
        f"{statistics.client_cpu_cores:.3f}",
        str(int(statistics.client_bound)),
        str(int(level.record.stable)),
    ]
