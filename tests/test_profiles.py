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
    batch=4,
    repetitions=100,
    mean_ms=1.25,
    std_ms=0.1,
    p50_ms=1.2,
    p90_ms=1.4,
    p99_ms=1.9,
    ci_pct=0.5,
    roundtrip_ms=1.4,
    throughput_per_s=3200.0,
    utilization_pct=97.5,
    others_pct=1.5,
    peak_memory_mb=80.1,
    load_s=0.05,
    ready_s=0.31,
)

numbers = st.floats(min_value=0, max_value=1e12, allow_nan=False)
counts = st.integers(min_value=1, max_value=10**9)
rows = st.builds(ProfileRow, **{f.name: counts if f.type is int else numbers for f in fields(ProfileRow)})


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
    with pytest.raises(ConfigError, match=r"m\.onnx\.csv, line 2: '50\.0,1,x' is not a row of 17 numbers"):
        profiles.read_profile(path)


def test_other_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match="its first line is 'a,b'"):
        profiles.parse_rows(b"a,b\n1,2\n", "old.csv")


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
    profiles.facts_path(path).write_text('{"model": 3}')
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
