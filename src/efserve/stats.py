"""Statistics of load levels: pure functions from raw records to figures.

Every formula stands in docs/bench.md. Owns no clock, no file, no table.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from efserve.intervals import mean_interval, percentile_interval, rate_interval
from efserve.records import (
    Clients,
    ClientsStatistics,
    Intervals,
    LatencySummary,
    LevelRecord,
    LevelStatistics,
    Micros,
    ModelStatistics,
    ServerCounters,
    ServerSplit,
    Window,
)

PERCENTILES = (50, 90, 95, 99, 99.9)  # in the order of the fields of `LatencySummary` and `Intervals`
STABLE_WINDOWS = 3
STABLE_RATIO = 1.10  # greatest / least of the last windows, of throughput and of latency
CLIENT_BOUND_CORES = 0.9


@dataclass(frozen=True, slots=True)
class WindowFigures:
    """What one window says about stability."""

    requests: int
    requests_per_s: float
    latency_us: float  # the mean, or the chosen percentile; nan when no request ended


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a level is stable; the reason is empty when it is."""

    stable: bool
    reason: str


def latency_summary(latency_us: Micros) -> LatencySummary | None:
    """Mean, deviation, percentiles (linear interpolation between closest ranks) and maximum; None for no requests."""
    if not latency_us.size:
        return None
    p50, p90, p95, p99, p99_9 = (float(p) for p in np.percentile(latency_us, PERCENTILES))
    return LatencySummary(
        mean_us=float(latency_us.mean()),
        deviation_us=float(latency_us.std()),
        p50_us=p50,
        p90_us=p90,
        p95_us=p95,
        p99_us=p99,
        p99_9_us=p99_9,
        max_us=float(latency_us.max()),
    )


def chosen_latency_us(summary: LatencySummary, percentile: int | None) -> float:
    """The latency that stands for a level: its mean, or percentile 50, 90, 95 or 99."""
    by_percentile = {
        None: summary.mean_us,
        50: summary.p50_us,
        90: summary.p90_us,
        95: summary.p95_us,
        99: summary.p99_us,
    }
    return by_percentile[percentile]


def window_figures(latency_us: Micros, duration_s: float, percentile: int | None = None) -> WindowFigures:
    """Figures of one window from the latencies of the requests that ended in it."""
    latency = float("nan")
    if latency_us.size:
        latency = float(latency_us.mean() if percentile is None else np.percentile(latency_us, percentile))
    return WindowFigures(latency_us.size, latency_us.size / duration_s, latency)


def verdict(windows: Sequence[WindowFigures]) -> Verdict:
    """Stable when throughput and latency of the last three windows each differ by at most 10 % (greatest / least)."""
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS:
        return Verdict(False, f"only {len(last)} of the {STABLE_WINDOWS} windows that the rule needs were measured")
    if not all(window.requests for window in last):
        return Verdict(False, "a window ended without a single answer: try a longer --window and --duration")
    rates = [window.requests_per_s for window in last]
    if max(rates) > STABLE_RATIO * min(rates):
        return Verdict(False, f"throughput of the last windows varies: {_listing(rates)} req/s{_few(last)}")
    latencies = [window.latency_us for window in last]
    if max(latencies) > STABLE_RATIO * min(latencies):
        return Verdict(False, f"latency of the last windows varies: {_listing(latencies)} us")
    return Verdict(True, "")


def _listing(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)


def _few(windows: Sequence[WindowFigures]) -> str:
    least = min(window.requests for window in windows)
    return f" ({least} requests in the least of them: try a longer --window)" if least < 20 else ""


def level_statistics(level: LevelRecord) -> LevelStatistics:
    """The figures of a level, over its reported windows. A request belongs to the window in which it ended."""
    windows = level.windows[len(level.windows) - level.reported :]
    duration_s = (windows[-1].end_us - windows[0].start_us) / 1e6
    inside = in_reported_windows(level)
    latency_us = level.requests.latency_us[inside]
    requests = int(latency_us.size)
    models = tuple(_model_statistics(level, index, windows) for index in range(len(level.models)))
    client_cpu_cores = sum(window.client_cpu_us for window in windows) / 1e6 / duration_s
    processes = level.pool.processes if level.pool else 1
    return LevelStatistics(
        duration_s=duration_s,
        requests=requests,
        requests_per_s=requests / duration_s,
        inferences_per_s=sum(model.inferences_per_s for model in models),
        latency=latency_summary(latency_us),
        errors=_summed_errors(models),
        client_cpu_cores=client_cpu_cores,
        client_bound=client_cpu_cores > CLIENT_BOUND_CORES * processes,
        server=server_split(_summed(level.server)),
        service=latency_summary(level.requests.service_us[inside]),
        delay=latency_summary(level.requests.delay_us[inside]) if level.load.is_open else None,
        due_per_s=sum(window.due for window in windows) / duration_s,
        models=models,
        clients=_clients_statistics(level.clients),
        intervals=Intervals(
            rate_interval(level.requests.end_us[inside], windows[0].start_us, windows[-1].end_us),
            mean_interval(latency_us),
            *(percentile_interval(latency_us, percentile) for percentile in PERCENTILES),
        ),
    )


def _model_statistics(level: LevelRecord, index: int, windows: Sequence[Window]) -> ModelStatistics:
    model = level.models[index]
    duration_s = (windows[-1].end_us - windows[0].start_us) / 1e6
    inside = _ended_in(level.requests.end_us, windows)
    latency_us = level.requests.latency_us[inside][level.requests.model[inside] == index]
    requests = int(latency_us.size)
    errors = {failed.kind: _count(failed.end_us, windows) for failed in level.failures if failed.model == index}
    return ModelStatistics(
        name=model.name,
        requests=requests,
        requests_per_s=requests / duration_s,
        inferences_per_s=requests * model.rows_per_request / duration_s,
        latency=latency_summary(latency_us),
        errors={kind: count for kind, count in errors.items() if count},
        server=server_split(level.server[index]),
        slo_ms=model.slo_ms,
        within_slo=int((latency_us <= model.slo_ms * 1000).sum()),
    )


def _summed_errors(models: Sequence[ModelStatistics]) -> dict[str, int]:
    counts = Counter[str]()
    for model in models:
        counts.update(model.errors)
    return dict(counts)


def _summed(counters: Sequence[ServerCounters | None]) -> ServerCounters | None:
    """The counters of all models together; None when one of them has none."""
    known = [single for single in counters if single is not None]
    if not known or len(known) < len(counters):
        return None
    return ServerCounters(*(sum(getattr(single, field.name) for single in known) for field in fields(ServerCounters)))


def _clients_statistics(clients: Clients | None) -> ClientsStatistics | None:
    if clients is None:
        return None
    mean_us = clients.mean_us[clients.requests > 0]
    if not mean_us.size:
        return ClientsStatistics(0, 0.0, 0.0)
    return ClientsStatistics(int(mean_us.size), float(mean_us.mean()), float(mean_us.std()))


def in_reported_windows(level: LevelRecord) -> slice:
    """Where those requests of a level stand that its figures cover."""
    return _ended_in(level.requests.end_us, level.windows[len(level.windows) - level.reported :])


def _ended_in(end_us: Micros, windows: Sequence[Window]) -> slice:
    """Where in ascending `end_us` the requests stand that ended after the windows began, up to their end."""
    first, last = np.searchsorted(end_us, (windows[0].start_us, windows[-1].end_us), side="right")
    return slice(int(first), int(last))


def _count(end_us: Micros, windows: Sequence[Window]) -> int:
    return int(end_us[_ended_in(end_us, windows)].size)


def server_split(counters: ServerCounters | None) -> ServerSplit | None:
    """Mean times per request and mean rows per model run; None where the server counted nothing."""
    if counters is None or counters.requests <= 0 or counters.executions <= 0:
        return None
    per_request_us = 1e-3 / counters.requests
    return ServerSplit(
        queue_us=counters.queue_ns * per_request_us,
        compute_input_us=counters.compute_input_ns * per_request_us,
        compute_infer_us=counters.compute_infer_ns * per_request_us,
        compute_output_us=counters.compute_output_ns * per_request_us,
        mean_batch=counters.inferences / counters.executions,
    )
