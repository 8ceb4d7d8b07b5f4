"""The tables and lines of a benchmark: complete, and legible at 80 columns."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from efserve.records import (
    BenchResult,
    Failures,
    LevelRecord,
    LevelResult,
    Load,
    LoadedModel,
    Requests,
    ServerCounters,
    Target,
    Window,
    machine_facts,
)
from efserve.reports.bench import LiveLines, closing_lines, tables
from efserve.reports.csv_table import as_csv
from efserve.stats import level_statistics, window_figures


def level(concurrency: int, latencies: list[int], *, stable: bool = True, busy: bool = False) -> LevelResult:
    latency_us = np.array(latencies, np.int64)
    ends = np.arange(1, len(latencies) + 1)
    failures = () if stable else (Failures("http 503", "Exceeds maximum queue size", np.array([5, 6])),)
    record = LevelRecord(
        load=Load.closed(concurrency),
        models=(LoadedModel("m", "", 2),),
        windows=(Window(0, 2_000_000, 1_900_000 if busy else 100_000),),
        reported=1,
        stable=stable,
        reason="" if stable else "throughput of the last windows varies: 1, 2, 3 req/s",
        requests=Requests.closed(ends, latency_us),
        failures=failures,
        server=(ServerCounters(10, 20, 5, 100_000, 10_000, 500_000, 20_000) if stable else None,),
    )
    return LevelResult(record, level_statistics(record))


def bench_result(*levels: LevelResult) -> BenchResult:
    return BenchResult(
        efserve_version="0",
        started_at="2030-01-01T00:00:00+00:00",
        machine=machine_facts(),
        config={},
        target=Target("http://127.0.0.1:1", True, "efserve", "0.1", "m", "", "", ("x FP32 [2, 3]",), True),
        levels=levels,
        interrupted=False,
    )


EXTREME = bench_result(
    level(1, [100, 200, 300]),
    level(10_000, [123_456_789] * 2000, stable=False, busy=True),
    level(16, []),
)


def printed(result: BenchResult) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(tables(result))
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # the StringIO from above


def test_tables_fit_80_columns_with_nothing_cut() -> None:
    text = printed(EXTREME)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    assert "0.200" in text
    assert "123457" in text


def test_remarks_tell_what_is_the_matter_with_a_level() -> None:
    text = " ".join(printed(EXTREME).split())
    assert "10000*" in text
    assert "concurrency 10000: unstable: throughput of the last windows varies: 1, 2, 3 req/s" in text
    assert "concurrency 10000: client-bound: the load generator used 0.95 of a core" in text
    assert "concurrency 10000: 2 errors 'http 503', the first: Exceeds maximum queue size" in text
    assert "concurrency 1:" not in text


def test_closing_lines_are_those_that_people_know() -> None:
    assert closing_lines(EXTREME, None) == [
        "Concurrency: 1, throughput: 3.00 infer/sec, latency 200 usec",
        "Concurrency: 10000, throughput: 2000.00 infer/sec, latency 123456789 usec",
        "Concurrency: 16, throughput: 0.00 infer/sec, latency - usec",
    ]
    assert closing_lines(bench_result(level(1, [100, 200, 300])), 99)[0].endswith("latency 298 usec")


def test_csv_has_the_columns_of_perf_analyzer() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(EXTREME))))
    assert [row["Concurrency"] for row in rows] == ["1", "10000", "16"]
    first = rows[0]
    assert first["Inferences/Second"] == "3.00"
    assert first["Requests/Second"] == "1.50"
    assert first["p50 latency"] == "200"
    assert (first["Server Queue"], first["Server Compute Infer"], first["Mean Batch"]) == ("10", "50", "4.000")
    assert first["Network+Server Send/Recv"] == "137"
    assert rows[1]["Server Queue"] == ""
    assert (rows[1]["Errors"], rows[1]["Client Bound"], rows[1]["Stable"]) == ("2", "1", "0")
    assert rows[2]["p99 latency"] == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_live_lines_are_rewritten_on_a_terminal_only(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, highlight=False)
    lines = LiveLines(console, rows_per_request=2)
    lines.on_target(EXTREME.target)
    lines.on_level_start(Load.closed(1))
    lines.on_window(Load.closed(1), 1, window_figures(np.array([500, 700]), 1.0))
    lines.on_level(EXTREME.levels[0])
    text = file.getvalue()
    assert ("\r" in text) == ("warm-up" in text) == ("measuring" in text) == terminal
    assert "m on efserve 0.1 (embedded server), sending x FP32 [2, 3]" in text
    final = text.replace("\r", "\n").splitlines()[-1].split()
    assert final == ["1", "3.0", "200", "1", "stable"]
