"""Results as CSV for spreadsheets: perf_analyzer's columns in its order, then ours; times in microseconds."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from efserve.intervals import Interval
from efserve.records import BenchResult, LatencySummary, LevelResult, Samples
from efserve.reports.levels import goodput_per_s

# The header that `perf_analyzer -f FILE` writes; the first column is "Request Rate" for open loops.
PERF_ANALYZER_COLUMNS = (
    "Concurrency",
    "Inferences/Second",
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
)
# perf_analyzer's names too, of its --verbose-csv, up to "Max GPU Memory Usage".
OWN_COLUMNS = (
    "Avg latency",
    "Avg GPU Utilization",
    "Avg GPU Power Usage",
    "Max GPU Memory Usage",
    "Load",
    "Requests/Second",
    "Offered/Second",
    "Goodput/Second",
    "Inferences/Second Low",
    "Inferences/Second High",
    "Avg latency Low",
    "Avg latency High",
    "p99.9 latency",
    "Max latency",
    "Std latency",
    "Avg Service",
    "p99 Service",
    "Avg Client Delay",
    "Max Client Delay",
    "Mean Batch",
    "Requests",
    "Errors",
    "Client CPU",
    "Client Bound",
    "Stable",
    "Reason",
    "File",
)

Cell = float | None


def as_csv(result: BenchResult, file: str = "") -> str:
    """A header and a row per level; empty cells where a figure is not known."""
    return many_as_csv([result], [file])


def many_as_csv(results: Sequence[BenchResult], files: Sequence[str]) -> str:
    """The levels of all results under one header; the last column says which file they are from."""
    kinds = {level.record.load.kind for result in results for level in result.levels}
    first = "Request Rate" if kinds == {"rate"} else "Concurrency"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((first, *PERF_ANALYZER_COLUMNS[1:], *OWN_COLUMNS))
    for result, file in zip(results, files, strict=True):
        for level in result.levels:
            writer.writerow([*_perf_analyzer_cells(level), *_own_cells(level), _inert(file)])
    return text.getvalue()


def _perf_analyzer_cells(level: LevelResult) -> list[str]:
    """The client does not time its own sending and receiving: they are zero, and in the part outside the server."""
    statistics, latency, split = level.statistics, level.statistics.latency, level.statistics.server
    server: list[Cell] = [None] * 4
    if split is not None:
        server = [split.queue_us, split.compute_input_us, split.compute_infer_us, split.compute_output_us]
    outside: Cell = None
    if latency is not None and split is not None:
        outside = latency.mean_us - sum(value for value in server if value is not None)
    times: list[Cell] = [None] * 4
    if latency is not None:
        times = [latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us]
    whole = (0.0, outside, *server, 0.0, *times)
    return [f"{level.record.load.value:g}", f"{statistics.inferences_per_s:.2f}", *(_whole(value) for value in whole)]


def _own_cells(level: LevelResult) -> list[str]:
    record, statistics, latency = level.record, level.statistics, level.statistics.latency
    rows = statistics.inferences_per_s / statistics.requests_per_s if statistics.requests_per_s else 1.0
    low, high = _ends(statistics.intervals.requests_per_s)
    mean_low, mean_high = _ends(statistics.intervals.mean_us)
    goodput = goodput_per_s(level)
    return [
        _whole(latency.mean_us if latency else None),
        *_gpu_cells(record.samples),
        _inert(record.load.label),
        f"{statistics.requests_per_s:.2f}",
        f"{statistics.due_per_s:.2f}" if record.load.is_open else "",
        "" if goodput is None else f"{goodput:.2f}",
        "" if low is None else f"{low * rows:.2f}",
        "" if high is None else f"{high * rows:.2f}",
        *(_whole(value) for value in (mean_low, mean_high)),
        *_tail_cells(latency),
        *_delay_cells(level),
        f"{statistics.server.mean_batch:.3f}" if statistics.server else "",
        str(statistics.requests),
        str(sum(statistics.errors.values())),
        f"{statistics.client_cpu_cores:.3f}",
        str(int(statistics.client_bound)),
        str(int(record.stable)),
        _inert(record.reason),
    ]


def _tail_cells(latency: LatencySummary | None) -> list[str]:
    if latency is None:
        return [""] * 3
    return [_whole(value) for value in (latency.p99_9_us, latency.max_us, latency.deviation_us)]


def _delay_cells(level: LevelResult) -> list[str]:
    """Service time and client delay, of open loops; elsewhere service is latency, and the delay 0."""
    service, delay = level.statistics.service, level.statistics.delay
    served = [service.mean_us, service.p99_us] if service else [None, None]
    late = [delay.mean_us, delay.max_us] if delay else [None, None]
    return [_whole(value) for value in (*served, *late)]


def _gpu_cells(samples: Samples | None) -> list[str]:
    """Utilisation as a part of 1, W, bytes: mean over GPUs and time for the first two, the greatest for the third."""
    if samples is None:
        return [""] * 3
    found: list[str] = []
    for name, divisor, greatest in (
        ("gpu_utilization_pct", 100.0, False),
        ("gpu_power_w", 1.0, False),
        ("gpu_memory_used_bytes", 1.0, True),
    ):
        series = [values for key, values in samples.series.items() if key.partition("[")[0] == name]
        known = np.concatenate(series) if series else np.empty(0)
        known = known[np.isfinite(known)]
        value = float("nan") if not known.size else float(known.max() if greatest else known.mean()) / divisor
        found.append("" if np.isnan(value) else f"{value:.4g}" if not greatest else f"{value:.0f}")
    return found


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _whole(value: Cell) -> str:
    return "" if value is None else f"{value:.0f}"


def _inert(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
