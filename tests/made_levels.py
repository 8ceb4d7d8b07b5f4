"""Levels made up for tests of what is decided from them."""

import numpy as np

from efserve.records import Failures, LevelRecord, LevelResult, Load, LoadedModel, Pool, Requests, Window
from efserve.stats import level_statistics


def level(latencies_us: list[int], *, failed: int = 0, due: int | None = None, unanswered: int = 0) -> LevelResult:
    """One second of an open loop; due None: a closed loop."""
    count = len(latencies_us)
    latency_us = np.array(latencies_us, np.int64)
    zeros = np.zeros(count, np.int64)
    record = LevelRecord(
        load=Load.closed(1) if due is None else Load.rate(due),
        models=(LoadedModel("m", "", 1),),
        windows=(Window(0, 1_000_000, 0, due or 0),),
        reported=1,
        stable=True,
        reason="",
        requests=Requests(np.linspace(1, 1_000_000, count).astype(np.int64), latency_us, zeros, zeros.astype(np.uint8)),
        failures=(Failures("timeout", "", np.full(failed, 5)),) if failed else (),
        server=(None,),
        pool=Pool(1, 1, 0, 0, unanswered),
    )
    return LevelResult(record, level_statistics(record))
