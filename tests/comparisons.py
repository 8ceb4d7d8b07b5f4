"""Comparisons made up for tests: figures without a measurement."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from efserve.comparison import Comparison, Contender, Turn
from efserve.histogram import Histogram
from efserve.records import LevelRecord, Load, LoadedModel, Machine, Requests, Target, Window
from efserve.stats import level_statistics

TARGET = Target("http://x", False, "test", "1", "echo", "", "test", ("input FP32 [1, 16]",), True)


def turn(requests_per_s: int, latency_us: int = 1000) -> Turn:
    """One second in which all requests took the same time."""
    ends = np.linspace(1, 1_000_000, requests_per_s).astype(np.int64)
    record = LevelRecord(
        load=Load.closed(8),
        models=(LoadedModel("echo", "", 1),),
        windows=(Window(0, 1_000_000, 0),),
        reported=1,
        stable=True,
        reason="",
        requests=Requests.closed(ends, np.full(requests_per_s, latency_us, np.int64)),
        failures=(),
        server=(None,),
    )
    latencies = Histogram()
    latencies.add(record.requests.latency_us)
    return Turn(level_statistics(record), latencies, stable=True, reason="")


def comparison(rounds: Sequence[Sequence[Turn]], names: Sequence[str] = ("first", "second")) -> Comparison:
    """These turns as a comparison."""
    return Comparison(
        efserve_version="0",
        started_at="2030-01-01T12:00:00+00:00",
        machine=Machine("cpu", 2, 1, "6", "3", {}),
        config={"rounds": len(rounds)},
        load=Load.closed(8),
        contenders=tuple(Contender(name, "", replace(TARGET)) for name in names),
        rounds=tuple(tuple(turns) for turns in rounds),
        interrupted=False,
    )
