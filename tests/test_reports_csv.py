"""The CSV report: perf_analyzer's header to the letter, then ours; no formulas, no invented figures."""

import csv
import io

from bench_results import HOSTILE, closed_result, hostile_result, measured_level, result_of
from efserve.records import Load
from efserve.reports.csv_table import OWN_COLUMNS, PERF_ANALYZER_COLUMNS, as_csv, many_as_csv

# As `perf_analyzer -f perf.csv` writes it: "Visualizing Latency vs. Throughput" in its documentation.
PERF_ANALYZER_HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency"
)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_header_begins_as_that_of_perf_analyzer() -> None:
    header = as_csv(closed_result()).splitlines()[0]
    assert header.startswith(PERF_ANALYZER_HEADER + ",")
    assert len(set(header.split(","))) == len(PERF_ANALYZER_COLUMNS) + len(OWN_COLUMNS)


def test_open_loops_have_a_request_rate() -> None:
    header = as_csv(hostile_result()).splitlines()[0]
    assert header.startswith(PERF_ANALYZER_HEADER.replace("Concurrency", "Request Rate") + ",")


def test_a_golden_row() -> None:
    (row,) = rows_of(as_csv(result_of(measured_level(Load.closed(4), per_s=500, latency_us=1000, seed=1)), "a.json"))
    parts = ["Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input", "Server Compute Infer"]
    parts += ["Server Compute Output", "Client Recv"]
    assert row["Concurrency"] == "4"
    assert [row[name] for name in parts[2:]] == ["300", "0", "450", "0", "0"]
    assert abs(sum(int(row[name]) for name in parts) - int(row["Avg latency"])) <= 2
    assert int(row["p50 latency"]) <= int(row["p90 latency"]) <= int(row["p99 latency"]) <= int(row["Max latency"])
    assert float(row["Inferences/Second Low"]) < float(row["Inferences/Second"]) < float(row["Inferences/Second High"])
    assert (row["Load"], row["Stable"], row["Errors"], row["Reason"], row["File"]) == ("4", "1", "0", "", "a.json")
    assert (row["Offered/Second"], row["Goodput/Second"], row["Avg GPU Utilization"], row["Avg Client Delay"]) == (
        "",
    ) * 4


def test_open_loops_tell_service_time_and_delay() -> None:
    last = rows_of(as_csv(hostile_result()))[6]
    assert (last["Request Rate"], last["Offered/Second"]) == ("1200", "1200.00")
    assert int(last["Avg latency"]) == int(last["Avg Service"]) + int(last["Avg Client Delay"])
    assert 0 < float(last["Goodput/Second"]) < float(last["Requests/Second"])
    assert (last["Errors"], last["Stable"]) == ("17", "0")
    assert 0.1 < float(last["Avg GPU Utilization"]) < 0.9


def test_a_level_without_answers_has_empty_cells() -> None:
    empty = rows_of(as_csv(hostile_result()))[7]
    assert empty["Inferences/Second"] == "0.00"
    assert {empty[name] for name in ("p50 latency", "Avg latency", "Server Queue", "Inferences/Second Low")} == {""}


def test_files_follow_one_another_under_one_header() -> None:
    rows = rows_of(many_as_csv([closed_result(), closed_result(seed=9)], ["a", "b"]))
    assert [row["File"] for row in rows] == ["a"] * 4 + ["b"] * 4


def test_text_is_no_formula() -> None:
    level = measured_level(Load("schedule", 0, label="=1+1"), per_s=100, latency_us=10, reason="@SUM(A1)")
    (row,) = rows_of(as_csv(result_of(level), f"-{HOSTILE}"))
    assert (row["Load"], row["Reason"], row["File"]) == ("'=1+1", "'@SUM(A1)", f"'-{HOSTILE}")
