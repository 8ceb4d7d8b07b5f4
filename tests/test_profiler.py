"""The profiler's decisions: what is measured, when it is enough, with which data, and how it is told."""

import io
import itertools
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from efserve.devices.cpu import cpu_slug
from efserve.errors import MeasurementFailed, NotFound, UsageError
from efserve.model_config import ModelConfig
from efserve.partition import Obtained, Partition
from efserve.profiler import sampling, shares, targets
from efserve.profiler.gauges import Look
from efserve.profiler.options import ProfileConfig
from efserve.profiler.rows import row_of
from efserve.profiler.sampling import Limits, Point
from efserve.profiler.shares import Share
from efserve.profiles import ProfileRow
from efserve.reasons import in_one_line
from efserve.reports.profile_plot import plot_profile
from efserve.reports.profile_table import best_lines, decimals, profile_table
from efserve.tensors import DATATYPES, TensorSpec, decode_bytes, to_array
from efserve.worker.spec import WorkerFacts
from test_profiles import FACTS, ROW

CONFIG = ModelConfig(
    "m",
    max_batch_size=8,
    inputs=(TensorSpec("image", "FP32", (3, -1, -1)), TensorSpec("ids", "INT64", (4,))),
    outputs=(TensorSpec("scores", "FP32", (10,)),),
)


@given(st.integers(1, 5000))
def test_batches_are_powers_of_two_and_the_maximum(largest: int) -> None:
    sizes = targets.batch_sizes(ProfileConfig(max_batch=largest), 4)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    assert all(math.log2(size).is_integer() for size in sizes[:-1])
    assert all(before < after <= 2 * before for before, after in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("config", "model_max_batch", "sizes"),
    [
        (ProfileConfig(), 0, (1, 2, 4, 8, 16, 32)),
        (ProfileConfig(), 8, (1, 2, 4, 8, 16, 32)),
        (ProfileConfig(), 48, (1, 2, 4, 8, 16, 32, 48)),
        (ProfileConfig(max_batch=6), 48, (1, 2, 4, 6)),
        (ProfileConfig(batches=(8, 3, 3)), 48, (3, 8)),
    ],
)
def test_batches_by_options(config: ProfileConfig, model_max_batch: int, sizes: tuple[int, ...]) -> None:
    assert targets.batch_sizes(config, model_max_batch) == sizes


def test_core_counts_by_options() -> None:
    assert shares.core_counts(ProfileConfig(), 4) == (4,)
    assert shares.core_counts(ProfileConfig(grid=True), 4) == (1, 2, 3, 4)
    assert shares.core_counts(ProfileConfig(grid=True, cores=(4, 2)), 4) == (2, 4)
    with pytest.raises(UsageError, match="--cores 5: efserve may use 4 cores"):
        shares.core_counts(ProfileConfig(cores=(1, 5)), 4)


def test_device_folder() -> None:
    assert cpu_slug("AMD EPYC", 2) == "cpu-amd-epyc-2c"
    assert cpu_slug("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 28) == "cpu-intel-xeon-e5-2680-v4-28c"
    assert cpu_slug("", 1) == "cpu-unknown-1c"


def repository(path: Path, files: dict[str, str]) -> ProfileConfig:
    for name, text in files.items():
        file = path / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return ProfileConfig(model_repository=(path / "models",), output=path / "out")


def test_every_engine_with_a_file_is_a_target(tmp_path: Path) -> None:
    config = repository(tmp_path, {"a/1/model.onnx": "", "a/2/model.onnx": "", "a/2/model.pt": "", "b/1/model.pt": ""})
    found = targets.find_targets(config, "cpu-x")
    assert [(t.name, t.model.version) for t in found.targets] == [
        ("a.onnx", "2"),
        ("a.torchscript", "2"),
        ("b.torchscript", "1"),
    ]
    assert found.targets[0].csv_path == tmp_path / "out" / "cpu-x" / "a.onnx.csv"
    assert found.targets[1].file == tmp_path / "models" / "a" / "2" / "model.pt"
    only_onnx = targets.find_targets(replace(config, engine=("onnx",)), "cpu-x")
    assert [t.name for t in only_onnx.targets] == ["a.onnx"]
    assert only_onnx.failures == ()


def test_models_that_cannot_be_profiled_are_told(tmp_path: Path) -> None:
    config = repository(
        tmp_path, {"bad/config.pbtxt": "x: 1", "bad/1/model.onnx": "", "empty/1/readme": "", "good/1/model.onnx": ""}
    )
    found = targets.find_targets(config, "cpu-x")
    assert [t.name for t in found.targets] == ["good.onnx"]
    assert [failure.partition(":")[0] for failure in found.failures] == ["bad", "empty"]
    named = targets.find_targets(replace(config, model=("good",), engine=("torchscript",)), "cpu-x")
    assert named.targets == ()
    assert "no model.pt for engine torchscript" in named.failures[0]
    with pytest.raises(NotFound, match="model 'other' is not in"):
        targets.find_targets(replace(config, model=("other",)), "cpu-x")


def test_nothing_to_profile_is_an_error(tmp_path: Path) -> None:
    config = repository(tmp_path, {"a/1/model.onnx": ""})
    with pytest.raises(UsageError, match="no model there has a file for torchscript"):
        targets.find_targets(replace(config, engine=("torchscript",)), "cpu-x")


def test_enough_is_often_and_long_and_steady() -> None:
    limits = Limits(min_repetitions=20, min_time_s=1.0)
    steady, unsteady = [1.0] * 100, [1.0, 3.0] * 50
    assert not limits.is_enough([], 0.0)
    assert not limits.is_enough(steady[:19], 60.0)
    assert not limits.is_enough(steady, 0.9)
    assert limits.is_enough(steady, 1.0)
    assert not limits.is_enough(unsteady, 1.0)
    assert limits.is_enough(unsteady, 5.0)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=200))
def test_interval_of_the_median_is_a_share_of_the_range(values: list[float]) -> None:
    pct = sampling.median_ci_pct(values)
    assert 0 <= pct <= 100 * (max(values) - min(values)) / 2 / float(np.median(values)) + 1e-6
    assert sampling.median_ci_pct([value * 2 for value in values]) == pytest.approx(pct)


def test_interval_of_the_median_covers_the_true_one() -> None:
    rng = np.random.default_rng(1)
    true_median, hits = math.log(2), 0
    for _ in range(300):
        sample = rng.exponential(size=100)
        half = sampling.median_ci_pct(list(sample)) / 100 * float(np.median(sample))
        hits += abs(float(np.median(sample)) - true_median) <= 1.3 * half  # the interval is not symmetric
    assert hits > 270


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("dims", [(2, 3), (), (0,)])
def test_random_request_fits_the_config(datatype: str, dims: tuple[int, ...]) -> None:
    config = ModelConfig("m", max_batch_size=8, inputs=(TensorSpec("x", datatype, dims),))
    request = sampling.random_request(config, 5, {})
    assert request.rows == 5
    assert request.shapes == ((5, *dims),)
    data = request.tensors[0]
    if datatype == "BYTES":
        assert set(decode_bytes(bytes(data), 5 * math.prod(dims), "x")) <= {b"0", b"1"}
    else:
        array = to_array(bytes(data), datatype, request.shapes[0])
        assert array.shape == (5, *dims)
        if datatype.startswith(("INT", "UINT", "BOOL")):
            assert set(np.unique(array).tolist()) <= {0, 1}
    assert sampling.random_request(config, 5, {}).tensors == request.tensors


def test_a_model_that_does_not_batch_gets_its_own_shape() -> None:
    request = sampling.random_request(replace(CONFIG, max_batch_size=0), 1, {"image": (3, 8, 9)})
    assert request.shapes == ((3, 8, 9), (4,))


def test_free_dims_are_one_or_as_asked() -> None:
    assert sampling.input_shapes(CONFIG, {}) == {"image": (3, 1, 1), "ids": (4,)}
    assert sampling.input_shapes(CONFIG, {"image": (3, 20, 30)}) == {"image": (3, 20, 30), "ids": (4,)}
    with pytest.raises(UsageError, match="--shape x: no such input; 'm' has image, ids"):
        sampling.input_shapes(CONFIG, {"x": (1,)})
    for wrong in ((4, 20, 30), (20, 30), (1, 3, 20, 30)):
        with pytest.raises(UsageError, match="does not fit the model's dims"):
            sampling.input_shapes(CONFIG, {"image": wrong})


def test_row_of_a_point() -> None:
    point = Point(
        spans_ms=(1.0, 2.0, 3.0, 4.0),
        device_ms=(0.5, 1.5),
        roundtrips_ms=(2.0, 3.0, 4.0, 5.0),
        batches_per_s=250.0,
        cpu_s_per_s=0.9,
        others_cpu_s_per_s=0.6,
        peak_memory_bytes=80_000_000,
        looks=(
            Look(1500.06, frozenset(), 10.0, None, 5.0, 3_000_000),
            Look(1500.0, frozenset({"sw_power_cap"}), 20.0, None, 7.0, 4_000_000),
            Look(1400.0, frozenset(), 97.0, None, 55.55, 4_000_000),
        ),
    )
    share = Share(33.33, Partition(cores=(0,)), "1 of 3 cores")
    worker = WorkerFacts(CONFIG, 1, 0.25, 0.0, 0.5, "onnxruntime 1", Obtained(sm_count=44))
    row = row_of(point, worker, batch=8, share=share, total_cores=3, first_ms=9.0)
    assert row == ProfileRow(
        share_pct=33.33,
        cores=1,
        sm_count=44,
        batch=8,
        repetitions=4,
        mean_ms=2.5,
        std_ms=1.118,
        p50_ms=2.5,
        p90_ms=3.7,
        p99_ms=3.97,
        ci_pct=60.0,
        device_ms=1.0,
        roundtrip_ms=3.5,
        throughput_per_s=2000.0,
        utilization_pct=90.0,
        gpu_util_pct=97.0,
        sm_util_pct=None,
        dram_util_pct=55.5,
        others_pct=20.0,
        peak_memory_mb=80.0,
        device_memory_mb=4.0,
        clock_start_mhz=1500.1,
        clock_end_mhz=1400.0,
        throttle="sw_power_cap",
        ready_s=0.5,
        load_s=0.25,
        first_ms=9.0,
    )
    assert row.is_throttled


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("it is not there", "it is not there"),
        ("Bad: no; its last lines of output:\nTraceback:\n  x\nlib.Bad: no\n", "Bad: no"),
        ("exited with code 3; its last lines of output:\nwarning\nout of paper\n", "exited with code 3: out of paper"),
        ("", ""),
    ],
)
def test_a_reason_becomes_one_line(reason: str, line: str) -> None:
    assert in_one_line(reason) == line


def test_a_process_that_is_gone_is_no_crash() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    with pytest.raises(MeasurementFailed, match="is gone"):
        sampling.peak_memory_bytes(gone.pid)
    with pytest.raises(MeasurementFailed, match="is gone"):
        sampling.CpuTimes.now(gone.pid, (0,))
    assert sampling.peak_memory_bytes(os.getpid()) > 1_000_000


def rows_of_a_grid() -> list[ProfileRow]:
    return [
        replace(
            ROW,
            share_pct=50.0 * cores,
            cores=cores,
            batch=batch,
            p99_ms=batch * 1.5 / cores,
            throughput_per_s=1000.0 * cores + batch,
            ci_pct=9.0 if batch == 2 else 0.5,
            others_pct=40.0 if batch == 4 else 0.0,
        )
        for cores in (1, 2)
        for batch in (1, 2, 4)
    ]


def test_table_fits_a_terminal_and_marks_the_best() -> None:
    rows = [replace(row, mean_ms=123.456, throughput_per_s=row.throughput_per_s * 1000) for row in rows_of_a_grid()]
    printed = io.StringIO()
    Console(file=printed, width=80).print(profile_table(FACTS, rows, 2.0))
    lines = printed.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[0].startswith("digits 1, onnxruntime 1.20.0")
    marked = [line.split()[:2] + line.split()[9:] for line in lines[2:] if line.strip()]
    assert marked == [
        ["50%", "1"],
        ["50%", "2", "~"],
        ["50%", "4", "!"],
        ["100%", "1"],
        ["100%", "2", "<~"],
        ["100%", "4", "*!"],
    ]


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    printed = io.StringIO()
    Console(file=printed, width=60).print(profile_table(FACTS, rows_of_a_grid(), None, 60))
    lines = printed.getvalue().splitlines()
    header = next(line for line in lines if line.startswith("share"))
    assert header.split() == ["share", "batch", "p50", "ms", "p99", "ms", "inf/s", "util", "%"]
    assert "\u2026" not in printed.getvalue()


def test_best_rows_in_words() -> None:
    assert best_lines(rows_of_a_grid()[:1], None) == [
        "* Most throughput: batch 1 on a share of 50%, 1,001 inf/s, p99 1.500 ms."
    ]
    words = best_lines(rows_of_a_grid(), 2.0)
    assert words[1] == "< With p99 within 2 ms: batch 2 on a share of 100%, 2,002 inf/s, p99 1.500 ms."
    assert words[2].startswith("~ Unsteady")
    assert words[3] == "! Other processes used more than 10% of the machine meanwhile."
    assert best_lines(rows_of_a_grid(), 0.1)[1].startswith("No batch has its p99 within 0.1 ms; the fastest is batch 1")


@pytest.mark.parametrize(
    ("value", "text"), [(0.05131, "0.0513"), (1.2344, "1.234"), (12.344, "12.34"), (123.44, "123.4"), (1234.4, "1234")]
)
def test_decimals(value: float, text: str) -> None:
    assert decimals(value) == text


@pytest.mark.parametrize("cores", [1, 2, 20])
def test_plot_is_a_png(tmp_path: Path, cores: int) -> None:
    rows = [replace(ROW, cores=n, share_pct=100 * n / cores, batch=b) for n in range(1, cores + 1) for b in (1, 2, 6)]
    plot_profile(FACTS, rows, 5.0, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
