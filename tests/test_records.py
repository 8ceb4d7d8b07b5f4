"""Result files: what is written is what is read, and every figure can be made again from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from efserve.errors import UsageError
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
    encode_result,
    machine_facts,
    read_result,
)
from efserve.stats import level_statistics


def bench_result() -> BenchResult:
    random = np.random.default_rng(1)
    ends = np.sort(random.integers(1, 3_000_000, 5000))
    record = LevelRecord(
        load=Load.closed(4),
        models=(LoadedModel("m", "", 2),),
        windows=tuple(Window(i * 1_000_000, (i + 1) * 1_000_000, 300_000) for i in range(3)),
        reported=3,
        stable=False,
        reason="on purpose",
        requests=Requests.closed(ends, random.integers(100, 5000, 5000)),
        failures=(Failures("http 503", "Exceeds maximum queue size", np.array([5, 2_999_999])),),
        server=(ServerCounters(10, 40, 5, 20_000, 10_000, 50_000, 5_000),),
    )
    return BenchResult(
        efserve_version="0",
        started_at="2030-01-01T00:00:00+00:00",
        machine=machine_facts(),
        config={"batch": 2, "url": "", "shape": ["a:1"]},
        target=Target("http://127.0.0.1:1", True, "efserve", "0", "m", "", "", ("x FP32 [2, 3]",), True),
        levels=(LevelResult(record, level_statistics(record)),),
        interrupted=False,
    )


def test_statistics_can_be_made_again_from_the_file(tmp_path: Path) -> None:
    written = bench_result()
    path = tmp_path / "bench.json"
    path.write_bytes(encode_result(written))
    read = read_result(path)
    assert level_statistics(read.levels[0].record) == read.levels[0].statistics == written.levels[0].statistics
    assert encode_result(read) == encode_result(written)


def test_the_file_begins_with_its_version_and_names_no_host(tmp_path: Path) -> None:
    document = json.loads(encode_result(bench_result()))
    assert next(iter(document)) == "schema_version"
    assert set(document["machine"]) == {"cpu_model", "cores", "memory_bytes", "kernel", "python", "libraries"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a result file"),
        (b"[]", "not a result file"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b'{"schema_version": 2}', "not a result file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_result(path)


def test_spoilt_arrays_are_refused(tmp_path: Path) -> None:
    document = json.loads(encode_result(bench_result()))
    for spoilt in ("!", "AAAA", 5):
        document["levels"][0]["record"]["requests"]["end_us"] = spoilt
        (tmp_path / "x.json").write_text(json.dumps(document))
        with pytest.raises(UsageError, match="not a result file"):
            read_result(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read it"):
        read_result(tmp_path / "nowhere.json")
