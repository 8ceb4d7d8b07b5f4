"""Benchmark results made from a seed instead of a server, for the tests of reports."""

from dataclasses import replace
from typing import Any

import numpy as np

from efserve.records import (
    BenchResult,
    Failures,
    LevelRecord,
    LevelResult,
    Load,
    LoadedModel,
    Machine,
    Pool,
    Requests,
    Samples,
    ServerCounters,
    Target,
    Window,
)
from efserve.stats import level_statistics

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'\x07"
WINDOW_US = 1_000_000
WINDOWS = 3


def measured_level(
    load: Load,
    *,
    per_s: float,
    latency_us: float,
    seed: int = 0,
    delay_us: float = 0.0,
    reason: str = "",
    models: tuple[LoadedModel, ...] = (LoadedModel("m", "1", 1),),
    **changes: Any,
) -> LevelResult:
    """A level of Poisson arrivals with log-normal latencies, which remember a little of the one before.

    `changes` are other fields of its record.
    """
    random = np.random.default_rng(seed)
    span_us = WINDOWS * WINDOW_US
    count = int(random.poisson(per_s * span_us / 1e6))
    ends_us = np.sort(random.integers(1, span_us + 1, count))
    noise = random.standard_normal(count + 1)
    latencies = np.exp(np.log(latency_us) + 0.35 * (0.8 * noise[1:] + 0.6 * noise[:-1])).astype(np.int64)
    delays = (random.random(count) * 2 * delay_us).astype(np.int64)
    record = LevelRecord(
        load=load,
        models=models,
        windows=tuple(
            Window(at * WINDOW_US, (at + 1) * WINDOW_US, 250_000, int(load.value) if load.is_open else 0)
            for at in range(WINDOWS)
        ),
        reported=WINDOWS,
        stable=not reason,
        reason=reason,
        requests=Requests(ends_us, latencies + delays, delays, random.integers(0, len(models), count).astype(np.uint8)),
        failures=(),
        server=tuple(_counters(count // len(models), latency_us) for _ in models),
        pool=Pool(1, 64, 0, 12 if delay_us else 0, 0) if load.is_open else None,
    )
    record = replace(record, **changes)
    return LevelResult(record, level_statistics(record))


def _counters(requests: int, latency_us: float) -> ServerCounters:
    queue, infer = int(300 * latency_us), int(450 * latency_us)
    return ServerCounters(
        requests, requests, max(requests // 3, 1), queue * requests, 9 * requests, infer * requests, 0
    )


def samples_of(seed: int) -> Samples:
    """Gauges of processes and GPUs, four times a second."""
    times_us = np.arange(0, WINDOWS * WINDOW_US, 250_000)
    level = np.random.default_rng(seed).random(times_us.size)
    series = {
        "client_cpu_cores": 0.2 + 0.05 * level,
        "workers_cpu_cores": 1.1 + 0.3 * level,
        "gateway_cpu_cores": 0.4 + 0.1 * level,
        "server_rss_bytes": 2.0e8 + 1e6 * level,
        "gpu_utilization_pct[0]": 60 + 30 * level,
        "gpu_utilization_pct[1]": 10 + 30 * level,
        "gpu_power_w": np.where(level > 0.2, 200 + 100 * level, np.nan),
    }
    return Samples(times_us, series)


def result_of(*levels: LevelResult, model: str = "resnet50", **config: object) -> BenchResult:
    """A result with these levels."""
    return BenchResult(
        efserve_version="0.1.0",
        started_at="2030-01-01T12:34:56+00:00",
        machine=Machine("Imaginary CPU", 8, 2**34, "6.1", "3.11.7", {"numpy": "2.0"}),
        config={"concurrency": "1:4", "duration_s": 3.0, **config},
        target=Target(
            "http://127.0.0.1:8000",
            True,
            "efserve",
            "0.1.0",
            model,
            "1",
            "onnx",
            ("x FP32 [1, 8]",),
            True,
            {"name": model},
        ),
        levels=levels,
        interrupted=False,
    )


def closed_result(*, per_s: float = 800.0, latency_us: float = 1000.0, seed: int = 0) -> BenchResult:
    """Concurrency 1 to 4."""
    levels = (
        measured_level(
            Load.closed(count), per_s=per_s * count**0.6, latency_us=latency_us * count**0.4, seed=seed + count
        )
        for count in (1, 2, 3, 4)
    )
    return result_of(*levels)


def hostile_result() -> BenchResult:
    """Everything at once: open loops with delay, errors, mixed models, samples, and names that are attacks."""
    models = (LoadedModel(HOSTILE, "1", 1, 5.0), LoadedModel("resnet50", "1", 2))
    failures = (
        Failures(f"http 503 {HOSTILE}", HOSTILE, np.arange(100_000, 900_000, 50_000)),
        Failures("timeout", "no answer within 30 s", np.array([1_500_000]), model=1),
    )
    levels = [
        measured_level(
            Load.rate(rate),
            per_s=min(rate, 900) * 0.97,
            latency_us=800 * 1.6**at,
            seed=at,
            delay_us=2e4 if rate > 900 else 10,
            reason=f"latency of the last windows varies: {HOSTILE}" if rate > 900 else "",
            failures=failures if rate > 900 else (),
            models=models,
            samples=samples_of(at),
        )
        for at, rate in enumerate((100, 200, 400, 600, 800, 1000, 1200))
    ]
    empty = measured_level(Load("rate", 1e-3, label=HOSTILE), per_s=0, latency_us=1, models=models)
    return result_of(*levels, empty, model=HOSTILE, text=HOSTILE)
