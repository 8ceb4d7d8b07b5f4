"""The table of levels on the HTML page: figures with their confidence, marks, models of mixed traffic."""

from collections.abc import Sequence
from dataclasses import dataclass

from efserve.records import LatencySummary, LevelResult, ModelStatistics
from efserve.reports.levels import goodput_per_s, heading, marks, ms, spread
from efserve.reports.markup import Markup, Node, element
from efserve.reports.scale import amount

MARK_CLASSES = {"stable": "good", "met goal": "good", "unstable": "warn", "errors": "bad"}


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns are not there in every table."""

    batches: bool
    is_open: bool
    has_goal: bool


def level_table(levels: Sequence[LevelResult], met: Sequence[bool] = ()) -> Markup:
    """A row per level, and under it a row per model where traffic is mixed; `met`: which levels met a search's goal."""
    columns = _Columns(
        batches=any(model.rows_per_request > 1 for level in levels for model in level.record.models),
        is_open=any(level.record.load.is_open for level in levels),
        has_goal=any(goodput_per_s(level) is not None for level in levels),
    )
    names = [heading(levels), "state", "infer/s", "±"]
    names += ["req/s"] if columns.batches else []
    names += ["offered/s"] if columns.is_open else []
    names += ["goodput/s"] if columns.has_goal else []
    names += ["mean ms", "±", "p50", "p90", "p95", "p99", "p99.9", "max"]
    names += ["service p99", "delay mean"] if columns.is_open else []
    names += ["errors", "batch", "client CPU", "windows"]
    head = element("thead", element("tr", [_head(name, at == 1) for at, name in enumerate(names)]))
    rows: list[Node] = []
    for at, level in enumerate(levels):
        goal = [] if at >= len(met) else ["met goal" if met[at] else "missed goal"]
        rows.append(_row(level, columns, [*marks(level), *goal]))
        if len(level.statistics.models) > 1:
            rows += [_model_row(level, model, columns) for model in level.statistics.models]
    return element("div", element("table", head, element("tbody", rows)), class_="scroll", tabindex="0")


def _head(name: str, is_words: bool) -> Markup:
    return element("th", name, scope="col", class_="words" if is_words else None)


def _row(level: LevelResult, columns: _Columns, words: Sequence[str]) -> Markup:
    statistics, latency = level.statistics, level.statistics.latency
    rate = spread(statistics.requests_per_s, statistics.intervals.requests_per_s)
    mean = spread(latency.mean_us, statistics.intervals.mean_us) if latency else ""
    goodput = goodput_per_s(level)
    cells = [amount(statistics.inferences_per_s), rate]
    cells += [amount(statistics.requests_per_s)] if columns.batches else []
    cells += [amount(statistics.due_per_s) if statistics.due_per_s else ""] if columns.is_open else []
    cells += ["" if goodput is None else amount(goodput)] if columns.has_goal else []
    cells += _latency_cells(latency, mean)
    if columns.is_open:
        cells += [ms(statistics.service.p99_us) if statistics.service else "-"]
        cells += [ms(statistics.delay.mean_us) if statistics.delay else "-"]
    cells += [
        f"{sum(statistics.errors.values()):,}",
        f"{statistics.server.mean_batch:.2f}" if statistics.server else "-",
        f"{100 * statistics.client_cpu_cores:.0f} %",
        f"{level.record.reported} of {len(level.record.windows)}",
    ]
    chips = [element("span", mark, class_=f"chip {MARK_CLASSES.get(mark, 'warn')}") for mark in words]
    spaced = [node for chip in chips for node in (chip, " ")]
    name = _name(level.record.load.label, "clip")
    return element("tr", name, element("td", spaced, class_="words"), [element("td", cell) for cell in cells])


def _name(name: str, class_: str) -> Markup:
    return element("th", element("div", name, class_=class_, title=name), scope="row")


def _latency_cells(latency: LatencySummary | None, mean_spread: str) -> list[str]:
    if latency is None:
        return ["-", "", *["-"] * 6]
    tail = (latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.p99_9_us, latency.max_us)
    return [ms(latency.mean_us), mean_spread, *(ms(value) for value in tail)]


def _model_row(level: LevelResult, model: ModelStatistics, columns: _Columns) -> Markup:
    goal = f"SLO {model.slo_ms:g} ms" if model.slo_ms else ""
    cells = [amount(model.inferences_per_s), ""]
    cells += [amount(model.requests_per_s)] if columns.batches else []
    cells += [""] if columns.is_open else []
    cells += (
        [amount(model.within_slo / level.statistics.duration_s) if model.slo_ms else ""] if columns.has_goal else []
    )
    cells += _latency_cells(model.latency, "")
    cells += ["", ""] if columns.is_open else []
    cells += [f"{sum(model.errors.values()):,}", f"{model.server.mean_batch:.2f}" if model.server else "-", "", ""]
    name = _name(model.name, "clip quiet")
    return element("tr", name, element("td", goal, class_="words"), [element("td", cell) for cell in cells])
