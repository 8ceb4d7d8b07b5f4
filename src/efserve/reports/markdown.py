"""Results as Markdown: a table of levels with their remarks, and what differs between two runs."""

from collections.abc import Iterable, Sequence

from efserve.records import BenchResult, LevelResult
from efserve.reports.differences import CHANCE, DRIFT, RunDifferences, change, differences, interval_text
from efserve.reports.levels import goodput_per_s, heading, long_name, ms, remarks, search_line, spread
from efserve.reports.scale import amount


def as_markdown(results: Sequence[BenchResult], names: Sequence[str]) -> str:
    """A section per result, then one per comparison of a later result with the first."""
    lines: list[str] = []
    for result, name in zip(results, names, strict=True):
        lines += [*_result(result, name), ""]
    for result, name in zip(results[1:], names[1:], strict=True):
        lines += [*_differences(differences(results[0], result), names[0], name), ""]
    return "\n".join(lines).rstrip() + "\n"


def _result(result: BenchResult, name: str) -> Iterable[str]:
    target, machine = result.target, result.machine
    yield f"## {_text(target.model)}: {_text(name)}"
    yield ""
    server = f"{target.server_name} {target.server_version}".strip()
    yield _text(
        f"{server} at {'an embedded port' if target.embedded else target.url}, sending {'; '.join(target.inputs)}; "
        f"{machine.cpu_model}, {machine.cores} cores; {result.started_at}"
    )
    yield ""
    is_open = any(level.record.load.is_open for level in result.levels)
    has_goal = any(goodput_per_s(level) is not None for level in result.levels)
    headings = [heading(result.levels), "infer/s", "±"]
    headings += ["offered/s"] if is_open else []
    headings += ["goodput/s"] if has_goal else []
    headings += ["mean ms", "±", "p50", "p90", "p95", "p99", "p99.9", "max"]
    headings += ["service p99", "delay mean"] if is_open else []
    headings += ["errors", "batch", ""]
    yield from _table(headings, [_cells(level, is_open, has_goal) for level in result.levels])
    told = [
        f"- **{_text(long_name(level.record))}**: {_text(remark)}"
        for level in result.levels
        for remark in remarks(level)
    ]
    if any(len(level.statistics.models) > 1 for level in result.levels):
        yield ""
        yield from _models(result.levels)
    if result.search is not None:
        told.append(f"- {_text(search_line(result.search))}")
    if told:
        yield ""
        yield from told


def _models(levels: Sequence[LevelResult]) -> Iterable[str]:
    """A row per model and level of mixed traffic."""
    rows = []
    for level in levels:
        for model in level.statistics.models:
            latency = model.latency
            times = (
                ["-"] * 3 if latency is None else [ms(us) for us in (latency.mean_us, latency.p50_us, latency.p99_us)]
            )
            goal = (
                [f"{model.slo_ms:g}", amount(model.within_slo / level.statistics.duration_s)]
                if model.slo_ms
                else ["", ""]
            )
            errors = str(sum(model.errors.values()))
            name = [_text(level.record.load.label), _text(model.name)]
            rows.append([*name, amount(model.inferences_per_s), *times, errors, *goal])
    yield from _table(
        [heading(levels), "model", "infer/s", "mean ms", "p50", "p99", "errors", "SLO ms", "goodput/s"], rows
    )


def _cells(level: LevelResult, is_open: bool, has_goal: bool) -> list[str]:
    statistics, latency = level.statistics, level.statistics.latency
    goodput = goodput_per_s(level)
    cells = [_text(level.record.load.label), amount(statistics.inferences_per_s)]
    cells += [spread(statistics.requests_per_s, statistics.intervals.requests_per_s)]
    cells += [amount(statistics.due_per_s)] if is_open else []
    cells += ["" if goodput is None else amount(goodput)] if has_goal else []
    if latency is None:
        cells += ["-", "", *["-"] * 6]
    else:
        tail = (latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.p99_9_us, latency.max_us)
        cells += [ms(latency.mean_us), spread(latency.mean_us, statistics.intervals.mean_us), *(ms(us) for us in tail)]
    if is_open:
        cells += [ms(statistics.service.p99_us) if statistics.service else "-"]
        cells += [ms(statistics.delay.mean_us) if statistics.delay else "-"]
    cells += [str(sum(statistics.errors.values()))]
    cells += [f"{statistics.server.mean_batch:.2f}" if statistics.server else "-"]
    return [*cells, "" if level.record.stable else "unstable"]


def _differences(found: RunDifferences, first: str, second: str) -> Iterable[str]:
    yield f"## {_text(second)} against {_text(first)}"
    yield ""
    rows = [
        [
            _text(level.name),
            f"{one.figure} ({one.unit})",
            amount(one.first),
            amount(one.second),
            change(one),
            interval_text(one),
            one.verdict,
        ]
        for level in found.levels
        for one in level.differences
    ]
    yield from _table(["level", "figure", _text(first), _text(second), "change", "95 % interval", "verdict"], rows)
    yield ""
    for name, only in ((first, found.only_first), (second, found.only_second)):
        if only:
            yield f"Only in {_text(name)}: {_text(', '.join(only))}."
    yield from (f"- {_text(line)}" for line in found.setup)
    yield f"{CHANCE} {DRIFT}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join(['---:'] * len(headings))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _text(text: str) -> str:
    """Text from a file, with nothing in it that Markdown or HTML would take for its own."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&~" else letter for letter in flat if letter.isprintable())
