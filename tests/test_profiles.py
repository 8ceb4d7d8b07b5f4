"""Profiles: the file's round trip, torn files at every length, resuming, and the choice of a best row."""

import csv
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve import profiles
from efserve.errors import ConfigError, UsageError
from efserve.profiles import ProfileFacts, ProfileFile, ProfileRow

FACTS = ProfileFacts(
    model="digits",
    version="1",
    engine="onnx",
    engine_version="onnxruntime 1.20.0",
    model_file="model.onnx",
    model_sha256="00" * 32,
    inputs={"input": "FP32 [batch,1,8,8]"},
    device="cpu-some-processor-2c",
    cpu_model="Some Processor",
    total_cores=2,
    threads="one per core",
    share_means="cores",
    gpu="",
    driver="",
    min_repetitions=20,
    min_time_s=1.0,
    efserve_version="0.1.0",
    kernel="6.1.0",
    python="3.11.2",
    libraries={"numpy": "2.0.0"},
    measured_at="2025-01-01T00:00:00+00:00",
)

ROW = ProfileRow(
    share_pct=50.0,
    cores=1,
    sm_count=None,
    batch=4,
    repetitions=100,
    mean_ms=1.25,
    std_ms=0.1,
    p50_ms=1.2,
    p90_ms=1.4,
    p99_ms=1.9,
    ci_pct=0.5,
    device_ms=None,
    roundtrip_ms=1.4,
    throughput_per_s=3200.0,
    utilization_pct=97.5,
    gpu_util_pct=None,
    sm_util_pct=None,
    dram_util_pct=None,
    others_pct=1.5,
    peak_memory_mb=80.1,
    device_memory_mb=None,
    clock_start_mhz=None,
    clock_end_mhz=None,
    throttle="",
    ready_s=0.31,
    load_s=0.05,
    first_ms=2.5,
)

numbers = st.floats(min_value=0, max_value=1e12, allow_nan=False)
counts = st.integers(min_value=1, max_value=10**9)
kinds: dict[object, st.SearchStrategy[float | str | None]] = {
    int: counts,
    float: numbers,
    int | None: st.none() | counts,
    float | None: st.none() | numbers,
    str: st.sampled_from(["", "none", "thermal", "sw_power_cap+thermal"]),
}
rows = st.builds(ProfileRow, **{f.name: kinds[f.type] for f in fields(ProfileRow)})


def write(path: Path, some: list[ProfileRow]) -> bytes:
    with ProfileFile(path) as file:
        file.start(FACTS)
        for row in some:
            file.append(row)
    return path.read_bytes()


@given(st.lists(rows, max_size=5))
def test_rows_read_back_exactly(some: list[ProfileRow]) -> None:
    data = (",".join(profiles.COLUMNS) + "\n").encode() + b"".join(map(profiles.row_line, some))
    parsed = profiles.parse_rows(data, "profile")
    assert parsed.rows == tuple(some)
    assert parsed.whole_bytes == len(data)


def test_file_and_facts_read_back(tmp_path: Path) -> None:
    path = profiles.profile_path(tmp_path, FACTS.device, "digits", "onnx")
    write(path, [ROW, replace(ROW, batch=8)])
    assert path == tmp_path / "cpu-some-processor-2c" / "digits.onnx.csv"
    assert profiles.read_profile(path) == profiles.Profile(FACTS, (ROW, replace(ROW, batch=8)))
    assert sorted(p.name for p in path.parent.iterdir()) == ["digits.onnx.csv", "digits.onnx.json"]


def test_any_csv_reader_understands_the_file(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx.csv", [ROW])
    with (tmp_path / "m.onnx.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["share_pct"] == "50.0"
    assert line["batch"] == "4"
    assert float(line["p99_ms"]) == 1.9
    assert line["device_ms"] == line["throttle"] == ""


def test_a_file_torn_at_every_length_resumes_to_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.csv"
    wanted = [ROW, replace(ROW, batch=8), replace(ROW, batch=16, mean_ms=1 / 3)]
    whole = write(path, wanted)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with ProfileFile(path) as file:
            remark = file.resume(FACTS)
            kept = len(file.rows)
            assert list(file.rows) == wanted[:kept]
            for row in wanted[kept:]:
                file.append(row)
        assert path.read_bytes() == whole
        at_end_of_line = cut == 0 or whole[cut - 1 : cut] == b"\n"
        assert bool(remark) != at_end_of_line, cut


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_empty_but_never_crashes(data: bytes) -> None:
    header = (",".join(profiles.COLUMNS) + "\n").encode()
    for content in (data, header + data):
        try:
            parsed = profiles.parse_rows(content, "profile")
        except ConfigError:
            continue
        assert parsed.whole_bytes <= len(content)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.csv"
    lines = write(path, [ROW, ROW]).splitlines(keepends=True)
    path.write_bytes(lines[0] + b"50.0,1,x\n" + lines[2])
    with pytest.raises(ConfigError, match=r"m\.onnx\.csv, line 2: '50\.0,1,x' is not a row of the 27 columns"):
        profiles.read_profile(path)


@pytest.mark.parametrize(
    ("column", "text", "wanted"),
    [("cores", "", "a whole number"), ("sm_count", "1.5", "a whole number"), ("p99_ms", "fast", "a number")],
)
def test_a_broken_value_is_named_with_its_column(column: str, text: str, wanted: str) -> None:
    values = profiles.row_line(ROW).decode().rstrip("\n").split(",")
    values[profiles.COLUMNS.index(column)] = text
    data = f"{','.join(profiles.COLUMNS)}\n{','.join(values)}\n".encode()
    with pytest.raises(ConfigError, match=f"^m.csv, line 2: {column} is {text!r}, not {wanted}$"):
        profiles.parse_rows(data, "m.csv")


def test_lines_that_end_as_in_windows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.csv"
    path.write_bytes(write(path, [ROW]).replace(b"\n", b"\r\n"))
    with pytest.raises(ConfigError, match=r"m\.onnx\.csv has lines that end as in Windows; `sed -i 's/\\r\$//' "):
        profiles.read_profile(path)


def test_other_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match="its first line is 'a,b'"):
        profiles.parse_rows(b"a,b\n1,2\n", "other.csv")


def test_an_older_file_says_in_a_sentence_what_to_do(tmp_path: Path) -> None:
    older = b"share_pct,cores,batch,repetitions,mean_ms\n50.0,1,1,20,0.5\n"
    with pytest.raises(ConfigError, match=r"old\.csv is of an older efserve: schema 1, this one reads 2; .* --force"):
        profiles.parse_rows(older, "old.csv")
    path = tmp_path / "m.onnx.csv"
    path.write_bytes(older)
    for schema, age in (('{"model": "m"}', "older"), ('{"schema": 1}', "older"), ('{"schema": 3}', "newer")):
        profiles.facts_path(path).write_text(schema)
        with pytest.raises(ConfigError, match=f"is of an? {age} efserve"):
            profiles.read_profile(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_sha256": "11" * 32}, "model_sha256 was '0000"),
        ({"engine_version": "onnxruntime 9"}, "engine_version was 'onnxruntime 1.20.0' and is 'onnxruntime 9'"),
        ({"cpu_model": "Other"}, "cpu_model was 'Some Processor' and is 'Other'"),
    ],
)
def test_resume_refuses_rows_of_other_facts(tmp_path: Path, change: dict[str, str], text: str) -> None:
    path = tmp_path / "m.onnx.csv"
    before = write(path, [ROW])
    now = replace(FACTS, **change)  # type: ignore[arg-type]  # each value is a string, as the fields named here are
    with ProfileFile(path) as file, pytest.raises(UsageError, match=text):
        file.resume(now)
    assert path.read_bytes() == before


def test_resume_takes_rows_of_another_day(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx.csv", [ROW])
    with ProfileFile(tmp_path / "m.onnx.csv") as file:
        assert file.resume(replace(FACTS, measured_at="2026-01-01T00:00:00+00:00", min_repetitions=5)) == ""
        assert file.rows == (ROW,)


def test_start_replaces_rows_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.csv"
    write(path, [ROW, ROW])
    with ProfileFile(path) as file:
        file.start(replace(FACTS, engine_version="onnxruntime 9"))
    assert profiles.read_profile(path) == profiles.Profile(replace(FACTS, engine_version="onnxruntime 9"), ())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"cannot write .*m\.onnx\.csv: Not a directory; .*--output"),
        ProfileFile(tmp_path / "file" / "cpu" / "m.onnx.csv"),
    ):
        pass


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with (
        ProfileFile(tmp_path / "m.onnx.csv"),
        pytest.raises(UsageError, match="is being written by another process"),
        ProfileFile(tmp_path / "m.onnx.csv"),
    ):
        pass


def test_missing_and_broken_facts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.csv"
    with pytest.raises(ConfigError, match=r"cannot read profile .*No such file"):
        profiles.read_profile(path)
    write(path, [ROW])
    profiles.facts_path(path).write_text('{"schema": 2, "model": 3}')
    with pytest.raises(ConfigError, match="does not hold the facts of a profile"):
        profiles.read_profile(path)
    profiles.facts_path(path).unlink()
    with pytest.raises(ConfigError, match="cannot read the facts"):
        profiles.read_profile(path)


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the system then accepts a part of the write, or none of it."""
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_profiles as t
from efserve.errors import MeasurementFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.ProfileFile(Path(sys.argv[1])) as file:
    file.start(t.FACTS)
    file.append(t.ROW)
    size = Path(sys.argv[1]).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
    try:
        file.append(t.ROW)
    except MeasurementFailed as error:
        print(error)
    assert file.rows == (t.ROW,)
"""
    path = tmp_path / "m.onnx.csv"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=30)
    assert "cannot write a row" in done.stdout
    assert profiles.read_profile(path).rows == (ROW,)


@given(st.lists(rows, min_size=1, max_size=8), numbers)
def test_best_rows_are_best(some: list[ProfileRow], slo_ms: float) -> None:
    best = profiles.best_by_throughput(some)
    assert best is not None
    assert best.throughput_per_s == max(row.throughput_per_s for row in some)
    under = profiles.best_under_slo(some, slo_ms)
    fitting = [row.throughput_per_s for row in some if row.p99_ms <= slo_ms]
    assert (under is None) == (not fitting)
    assert under is None or (under.p99_ms <= slo_ms and under.throughput_per_s == max(fitting))


def test_of_equal_throughputs_the_smaller_share_is_best() -> None:
    half, whole = ROW, replace(ROW, share_pct=100.0, cores=2)
    assert profiles.best_by_throughput([whole, half]) is half
    assert profiles.best_by_throughput([]) is None
    assert profiles.best_under_slo([half], math.inf) is half


def of_shares(rates: dict[float, float]) -> list[ProfileRow]:
    return [replace(ROW, share_pct=share, throughput_per_s=rate) for share, rate in rates.items()]


@pytest.mark.parametrize(
    ("rates", "knee"),
    [
        ({50.0: 100, 100.0: 200}, 100),  # twice the share, twice the throughput
        ({50.0: 100, 100.0: 151}, 100),
        ({50.0: 100, 100.0: 149}, 50),
        ({50.0: 100, 100.0: 80}, 50),
        ({10.0: 10, 20.0: 20, 40.0: 40, 60.0: 45, 80.0: 46, 100.0: 47}, 40),
        ({10.0: 10, 20.0: 11, 40.0: 40, 100.0: 41}, 40),  # one bad step is no knee
        ({10.0: 1, 50.0: 50, 100.0: 60}, 50),  # a small share that is worth little is no measure of the others
        ({100.0: 60}, None),
        ({}, None),
    ],
)
def test_knee_of_a_curve(rates: dict[float, float], knee: float | None) -> None:
    assert profiles.knee_pct(of_shares(rates)) == knee


curves = st.dictionaries(st.integers(1, 100).map(float), st.floats(0.01, 1e6), min_size=2, max_size=10)


@given(curves, st.floats(0.01, 100))
def test_knee_is_a_share_that_does_not_depend_on_units(rates: dict[float, float], factor: float) -> None:
    knee = profiles.knee_pct(of_shares(rates))
    assert knee in rates
    best = max(rate / share for share, rate in rates.items())
    gains = [(rate - rates[knee]) / (share - knee) / best for share, rate in rates.items() if share > knee]
    assert all(gain < profiles.KNEE_GAIN for gain in gains)
    if all(abs(gain - profiles.KNEE_GAIN) > 1e-6 for gain in gains):
        scaled = profiles.knee_pct(of_shares({share: rate * factor for share, rate in rates.items()}))
        assert scaled is not None
        assert scaled <= knee or knee == max(rates)


@given(curves)
def test_knees_of_batches_and_of_the_best_batch(rates: dict[float, float]) -> None:
    rows = of_shares(rates)
    slower = [replace(row, batch=8, throughput_per_s=row.throughput_per_s / 2) for row in rows]
    found = profiles.knees([*rows, *slower])
    assert found is not None
    assert found.by_batch.keys() == {4, 8}
    assert found.share_pct == found.by_batch[4] == profiles.knee_pct(rows)
    assert profiles.knees(rows[:1]) is None
