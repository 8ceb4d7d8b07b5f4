"""Counters: sums by batch, and snapshots that perf_analyzer can trust."""

from hypothesis import given
from hypothesis import strategies as st

from efserve.codec.v2_models import statistics
from efserve.counters import BACKEND, OTHER, ModelCounters
from efserve.inference import BatchTiming, InferRequest


def request(arrival_ns: int, rows: int = 1) -> InferRequest:
    return InferRequest((b"",), ((rows,),), rows, None, lambda outcome: None, arrival_ns=arrival_ns)


def test_one_batch_of_two_requests() -> None:
    counters = ModelCounters(pending=lambda: 7)
    counters.batch_done([request(100), request(400, rows=2)], 3, BatchTiming(1000, 1010, 1110, 1115), 1200)
    assert (counters.successes, counters.rows, counters.executions, counters.pending()) == (2, 3, 1, 7)
    assert counters.success_ns == (1200 - 100) + (1200 - 400)
    assert counters.queue_ns == 900 + 600
    assert (counters.compute_input_ns, counters.compute_infer_ns, counters.compute_output_ns) == (20, 200, 10)
    assert repr(counters.batches[3]) == "BatchStats(executions=1, input_ns=10, infer_ns=100, output_ns=5)"
    assert counters.last_inference_ms > 1_600_000_000_000
    assert repr(counters) == "<ModelCounters 2 ok, 0 failed, 1 executions>"


def test_failures_by_reason() -> None:
    counters = ModelCounters()
    counters.failed(BACKEND, 5)
    counters.failed("SOMETHING", 7)
    assert (counters.failures[BACKEND], counters.failures[OTHER], counters.failures_ns) == (1, 1, 12)


def test_histograms_count_up_to_their_bounds() -> None:
    counters = ModelCounters()
    for duration_ns, rows in ((100_000, 1), (100_001, 3), (10**11, 1000)):
        counters.batch_done([request(0)], rows, BatchTiming(0, 0, 0, 0), duration_ns)
    assert counters.request_durations.cumulative()[:2] == [1, 2]
    assert counters.request_durations.cumulative()[-2:] == [2, 3]
    assert counters.request_durations.total == 100_000 + 100_001 + 10**11
    assert counters.rows_per_batch.cumulative() == [1, 1, 2, 2, 2, 2, 2, 2, 2, 3]


stamps = st.integers(0, 10**12)
events = st.tuples(st.lists(st.tuples(stamps, st.integers(1, 4)), min_size=1, max_size=4), st.tuples(*[stamps] * 4))


@given(st.lists(events, max_size=6))
def test_every_snapshot_is_consistent_and_unsigned(
    batches: list[tuple[list[tuple[int, int]], tuple[int, ...]]],
) -> None:
    counters = ModelCounters()
    for requests, timing in batches:
        group = [request(arrival_ns, rows) for arrival_ns, rows in requests]
        now_ns = max([*timing, *(arrival_ns for arrival_ns, _ in requests)])
        counters.batch_done(group, sum(item.rows for item in group), BatchTiming(*timing), now_ns)
        stats = statistics([("m", "1", counters)])["model_stats"][0]
        inference = stats["inference_stats"]
        counts = {inference[name]["count"] for name in ("queue", "compute_input", "compute_infer", "compute_output")}
        assert counts == {inference["success"]["count"]}
        assert all(entry["ns"] >= 0 for entry in inference.values())
        assert sum(entry["compute_infer"]["count"] for entry in stats["batch_stats"]) == stats["execution_count"]
        assert (
            sum(entry["batch_size"] * entry["compute_infer"]["count"] for entry in stats["batch_stats"])
            == (stats["inference_count"])
        )
