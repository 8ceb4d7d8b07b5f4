"""How people see a benchmark in the terminal: the lines while it runs, the tables after it."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from efserve.intervals import Interval
from efserve.records import BenchResult, LevelResult, Load, Target
from efserve.reports.levels import (
    goodput_per_s,
    heading,
    is_remarkable,
    long_name,
    marks,
    ms,
    plain,
    remarks,
    search_line,
    short_name,
    spread,
)
from efserve.reports.tables import PlainTable
from efserve.stats import WindowFigures, chosen_latency_us

_CLOSING_NAMES = {"concurrency": "Concurrency", "rate": "Request Rate", "clients": "Clients"}
MOST_MODEL_LETTERS = 18
_LOAD_LETTERS = 8


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
        self._line(f"{'load':>{_LOAD_LETTERS}} {'infer/s':>12} {'latency us':>12} {'window':>7}  state")

    def on_level_start(self, load: Load) -> None:
        """The level is warming up."""
        self._current(start_line(load))

    def on_window(self, load: Load, number: int, figures: WindowFigures) -> None:
        """The figures of the window that is over."""
        self._current(window_line(load, number, figures, self._rows))

    def on_level(self, result: LevelResult) -> None:
        """The figures of the level that is done."""
        self._line(level_line(result))

    def _current(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(plain(text).ljust(60), end="\r", markup=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self._console.print(plain(text).ljust(60 if self._console.is_terminal else 0), markup=False, soft_wrap=True)


def start_line(load: Load) -> str:
    """A level that is warming up."""
    return f"{load.label:>{_LOAD_LETTERS}} {'':>12} {'':>12} {'':>7}  warm-up"


def window_line(load: Load, number: int, figures: WindowFigures, rows_per_request: int) -> str:
    """The figures of a window."""
    rate = f"{figures.requests_per_s * rows_per_request:.1f}"
    return f"{load.label:>{_LOAD_LETTERS}} {rate:>12} {figures.latency_us:>12.0f} {number:>7}  measuring"


def level_line(result: LevelResult) -> str:
    """The figures of a level that is done."""
    statistics = result.statistics
    mean = f"{statistics.latency.mean_us:.0f}" if statistics.latency else "-"
    rate = f"{statistics.inferences_per_s:.1f}"
    words, windows = ", ".join(marks(result)), len(result.record.windows)
    return f"{result.record.load.label:>{_LOAD_LETTERS}} {rate:>12} {mean:>12} {windows:>7}  {words}"


def tables(result: BenchResult) -> RenderableType:
    """The final tables, at most 80 columns wide, and under them what the reader must know of single levels."""
    levels = result.levels
    return Group(
        _latency_table(levels),
        *_open_loop_table(levels),
        *_model_table(levels),
        *_clients_table(levels),
        *_server_table(levels),
        *_remarks(levels),
        *([Text(plain(search_line(result.search)), style="bold")] if result.search else []),
    )


def _latency_table(levels: Sequence[LevelResult]) -> Table:
    headings = ("infer/s", "±%", "mean", "±%", "p50", "p90", "p95", "p99", "p99.9", "max", "errors")
    table = _table("Throughput, and latency in ms, with half their 95 % intervals", (heading(levels), *headings))
    for level in levels:
        statistics, latency = level.statistics, level.statistics.latency
        times, mean = ["-"] * 6, ("-", "")
        if latency is not None:
            tail = (latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.p99_9_us, latency.max_us)
            times = [ms(value) for value in tail]
            mean = (ms(latency.mean_us), _half(latency.mean_us, statistics.intervals.mean_us))
        rate = (
            f"{statistics.inferences_per_s:.1f}",
            _half(statistics.requests_per_s, statistics.intervals.requests_per_s),
        )
        errors = str(sum(statistics.errors.values()))
        style = "" if level.record.stable else "yellow"
        table.add_row(_marked(level), *rate, *mean, *times, errors, style=style)
    return table


def _half(value: float, interval: Interval | None) -> str:
    return spread(value, interval).strip("± %")


def _open_loop_table(levels: Sequence[LevelResult]) -> Iterable[Table]:
    """Of open loops: what was offered, the service time beside the latency, and what the client was late."""
    if not any(level.record.load.is_open for level in levels):
        return
    headings = ("offered/s", "req/s", "service", "p99", "delay", "p99", "max", "waited", "unanswered")
    yield (table := _table("Open loop: service time and the client's own delay in ms", (heading(levels), *headings)))
    for level in levels:
        statistics, pool = level.statistics, level.record.pool
        service, delay = statistics.service, statistics.delay
        served = ("-", "-") if service is None else (ms(service.mean_us), ms(service.p99_us))
        late = ("-",) * 3 if delay is None else (ms(delay.mean_us), ms(delay.p99_us), ms(delay.max_us))
        rates = (f"{statistics.due_per_s:.1f}", f"{statistics.requests_per_s:.1f}")
        waits = ("-", "-") if pool is None else (str(pool.waited), str(pool.unanswered))
        table.add_row(_marked(level), *rates, *served, *late, *waits)


def _model_table(levels: Sequence[LevelResult]) -> Iterable[Table]:
    """A row per model of mixed traffic; of a single one only where it has an SLO."""
    has_goal = any(goodput_per_s(level) is not None for level in levels)
    if not has_goal and all(len(level.statistics.models) == 1 for level in levels):
        return
    headings = ["model", "req/s", "mean", "p50", "p99", "errors"] + ["SLO", "goodput/s"] * has_goal
    yield (table := _table("By model, latency in ms", (heading(levels), *headings), left=1))
    for level in levels:
        for at, model in enumerate(level.statistics.models):
            latency = model.latency
            times = ("-",) * 3 if latency is None else (ms(latency.mean_us), ms(latency.p50_us), ms(latency.p99_us))
            figures = [f"{model.requests_per_s:.1f}", *times, str(sum(model.errors.values()))]
            if has_goal and model.slo_ms:
                figures += [f"{model.slo_ms:g}", f"{model.within_slo / level.statistics.duration_s:.1f}"]
            name = plain(model.name)
            cut = name if len(name) <= MOST_MODEL_LETTERS else f"{name[: MOST_MODEL_LETTERS - 1]}…"
            table.add_row(_marked(level) if at == 0 else "", Text(cut), *figures)


def _clients_table(levels: Sequence[LevelResult]) -> Iterable[Table]:
    if not any(level.statistics.clients for level in levels):
        return
    yield (table := _table("Clients' mean latency in ms", (heading(levels), "answered", "mean", "deviation")))
    for level in levels:
        clients = level.statistics.clients
        if clients is not None:
            figures = (str(clients.clients), ms(clients.mean_us), ms(clients.deviation_us))
            table.add_row(_marked(level), *figures)


def _server_table(levels: Sequence[LevelResult]) -> Iterable[Table]:
    if not any(level.statistics.server for level in levels):
        return
    headings = ("queue", "input", "infer", "output", "batch", "req/s", "deviation", "client CPU")
    yield (table := _table("The server's own split in ms, its mean batch; the client", (heading(levels), *headings)))
    for level in levels:
        split, statistics = level.statistics.server, level.statistics
        parts = ["-"] * 5
        if split is not None:
            times = (split.queue_us, split.compute_input_us, split.compute_infer_us, split.compute_output_us)
            parts = [*(ms(value) for value in times), f"{split.mean_batch:.2f}"]
        deviation = ms(statistics.latency.deviation_us) if statistics.latency else "-"
        cpu = f"{100 * statistics.client_cpu_cores:.0f} %"
        table.add_row(_marked(level), *parts, f"{statistics.requests_per_s:.1f}", deviation, cpu)


def _table(title: str, headings: Sequence[str], left: int = -1) -> Table:
    """A table without lines; all columns but number `left` are flush right."""
    table = PlainTable(title, tight=True)
    for at, name in enumerate(headings):
        table.add_column(name, justify="left" if at == left else "right", no_wrap=True)
    return table


def _marked(level: LevelResult) -> Text:
    """The level, with `*` where a remark below the tables is about it."""
    return Text(plain(f"{short_name(level.record)}{'*' if is_remarkable(level) else ''}"))


def _remarks(levels: Iterable[LevelResult]) -> Iterable[Text]:
    for level in levels:
        for remark in remarks(level):
            yield Text(plain(f"* {long_name(level.record)}: {remark}"))


def closing_lines(result: BenchResult, percentile: int | None) -> list[str]:
    """One line per level in the words of perf_analyzer, whose readers look for them."""
    lines = []
    for level in result.levels:
        statistics, load = level.statistics, level.record.load
        latency = "-"
        if statistics.latency is not None:
            latency = f"{chosen_latency_us(statistics.latency, percentile):.0f}"
        name = _CLOSING_NAMES.get(load.kind, "Load")
        value = f"{load.value:g}" if load.kind in ("rate", "clients") and not load.shape else load.label
        lines.append(
            f"{name}: {value}, throughput: {statistics.inferences_per_s:.2f} infer/sec, latency {latency} usec"
        )
    return lines
