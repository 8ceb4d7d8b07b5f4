"""`efserve profile` as a process: real workers, real files, interrupted in every way and resumed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import onnx_models
from efserve.devices.cpu import available_cores
from efserve.errors import MeasurementFailed
from efserve.pairs import Pairs, read_pairs
from efserve.partition import Partition
from efserve.planning.interference import read_interference
from efserve.profiler.options import ProfileConfig
from efserve.profiler.sampling import Feeder, random_request
from efserve.profiler.targets import find_targets
from efserve.profiles import Profile, ProfileRow, read_profile
from efserve.worker.handle import Worker
from efserve.worker.spec import WorkerSpec

PYTHON_CONFIG = """
backend: "python" max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }}
"""
FAILS_ON_LARGE_BATCHES = """
class Model:
    def __init__(self, config, folder): pass
    def infer(self, inputs):
        if len(inputs["x"]) > 2:
            raise ValueError("too many rows")
        return {"y": inputs["x"]}
"""
HANGS = """
import threading
class Model:
    def __init__(self, config, folder): pass
    def infer(self, inputs): threading.Event().wait()
"""
DIES_ON_LARGE_BATCHES = FAILS_ON_LARGE_BATCHES.replace('raise ValueError("too many rows")', "import os; os._exit(7)")
DIES_LATER = """
import os
class Model:
    def __init__(self, config, folder): self.batches = 0
    def infer(self, inputs):
        self.batches += 1
        if self.batches == 300: os._exit(7)
        return {"y": inputs["x"]}
"""
QUICK = ("--min-time", "0.05", "--min-repetitions", "5")


def command(folder: Path, *options: str) -> list[str]:
    where = ["--device", "cpu", "--model-repository", str(folder / "models"), "--output", str(folder / "out")]
    return [sys.executable, "-m", "efserve", "profile", *where, *options]


def profile(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=100, check=False)


def csv_of(folder: Path, name: str) -> Path:
    (path,) = (folder / "out").glob(f"*/{name}.csv")
    return path


def keys(rows: Sequence[ProfileRow]) -> list[tuple[int, int]]:
    return [(row.cores, row.batch) for row in rows]


def save_python(folder: Path, name: str, text: str) -> None:
    version = folder / "models" / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(text)
    (version.parent / "config.pbtxt").write_text(PYTHON_CONFIG.format())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with the model `identity`."""
    onnx_models.save(tmp_path / "models", "identity", onnx_models.identity())
    return tmp_path


def test_a_grid_has_every_share_and_batch(folder: Path) -> None:
    onnx_models.save(folder / "models", "fixed", onnx_models.without_batch())
    done = profile(folder, "--grid", "--max-batch", "6", "--slo", "100", "--plot", *QUICK)
    assert done.returncode == 0, done.stderr
    counts = range(1, len(available_cores()) + 1)
    measured = read_profile(csv_of(folder, "identity.onnx"))
    assert keys(measured.rows) == [(cores, batch) for cores in counts for batch in (1, 2, 4, 6)]
    assert measured.facts.inputs == {"input": "FP32 [batch,16]"}
    assert measured.facts.engine_version.startswith("onnxruntime ")
    for row in measured.rows:
        assert row.repetitions >= 5
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.mean_ms < row.roundtrip_ms
        assert row.throughput_per_s > 0
        assert 20 < row.peak_memory_mb < 1000
        assert 0 < row.load_s < row.ready_s
        assert row.first_ms > row.p50_ms / 10
        assert row.device_ms is row.sm_count is row.device_memory_mb is None
    assert len({row.first_ms for row in measured.rows}) == len(counts)
    assert keys(read_profile(csv_of(folder, "fixed.onnx")).rows) == [(cores, 1) for cores in counts]
    assert csv_of(folder, "identity.onnx").with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "identity 1, onnxruntime" in done.stdout
    assert "< With p99 within 100 ms: batch" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("->")) <= 80


def test_without_grid_the_whole_machine_is_the_only_share(folder: Path) -> None:
    done = profile(folder, "--batches", "3,1", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cores = len(available_cores())
    (only,) = told["profiles"]
    assert [(row["cores"], row["batch"], row["share_pct"]) for row in only["rows"]] == [
        (cores, 1, 100),
        (cores, 3, 100),
    ]
    assert only["best_by_throughput"] in only["rows"]
    assert only["best_under_slo"] is None
    assert told["failures"] == []
    assert "identity 1, onnxruntime" in done.stderr


def test_free_dims_come_from_the_command_line(folder: Path) -> None:
    onnx_models.save(folder / "models", "dynamic", onnx_models.dynamic())
    done = profile(folder, "--model", "dynamic", "--shape", "input:50", "--batches", "2", *QUICK)
    assert done.returncode == 0, done.stderr
    assert read_profile(csv_of(folder, "dynamic.onnx")).facts.inputs == {"input": "FP32 [batch,50]"}


def test_measured_before_needs_a_decision(folder: Path) -> None:
    assert profile(folder, "--batches", "1", *QUICK).returncode == 0
    before = csv_of(folder, "identity.onnx").read_bytes()
    again = profile(folder, "--batches", "1,2", *QUICK)
    assert again.returncode == 2
    assert "measured before; --resume measures only what is missing, --force begins afresh" in again.stderr
    assert csv_of(folder, "identity.onnx").read_bytes() == before
    assert profile(folder, "--batches", "1,2", "--resume", *QUICK).returncode == 0
    assert csv_of(folder, "identity.onnx").read_bytes().startswith(before)
    assert [row.batch for row in read_profile(csv_of(folder, "identity.onnx")).rows] == [1, 2]
    assert profile(folder, "--batches", "4", "--force", *QUICK).returncode == 0
    assert [row.batch for row in read_profile(csv_of(folder, "identity.onnx")).rows] == [4]
    assert profile(folder, "--resume", "--force").returncode == 2


def test_another_model_file_cannot_be_resumed(folder: Path) -> None:
    assert profile(folder, "--batches", "1", *QUICK).returncode == 0
    before = csv_of(folder, "identity.onnx").read_bytes()
    (folder / "models" / "identity" / "1" / "model.onnx").write_bytes(onnx_models.identity(8))
    done = profile(folder, "--batches", "1,2", "--resume", *QUICK)
    assert done.returncode == 1
    assert "identity.onnx: cannot resume" in done.stderr
    assert "model_sha256 was " in done.stderr
    assert "--force measures it afresh" in done.stderr
    assert csv_of(folder, "identity.onnx").read_bytes() == before


def test_what_cannot_be_measured_is_told_in_a_line_and_the_rest_goes_on(folder: Path) -> None:
    broken = onnx_models.save(folder / "models", "broken", b"no model")
    save_python(folder, "fails", FAILS_ON_LARGE_BATCHES)
    save_python(folder, "dies", DIES_ON_LARGE_BATCHES)
    done = profile(folder, "--batches", "1,2,4", *QUICK)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    by_model = {line.partition(".")[0]: line for line in lines}
    assert str(broken / "model.onnx") in by_model["broken"]
    assert "batch 4: " in by_model["fails"]
    assert "too many rows" in by_model["fails"]
    assert "batch 4: the worker died: exited with code 7" in by_model["dies"]
    for name in ("fails.python", "dies.python"):
        assert [row.batch for row in read_profile(csv_of(folder, name)).rows] == [1, 2]
    assert [row.batch for row in read_profile(csv_of(folder, "identity.onnx")).rows] == [1, 2, 4]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has measured its first row and is in the middle of others."""
    process = subprocess.Popen(
        command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _wait_for(lambda: any(path.read_bytes().count(b"\n") >= 2 for path in (folder / "out").glob("*/*.csv")))
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.01)  # a moment for the processes that it is about


def children_of(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of the thread that started them
    return [int(child) for children in lists for child in children.read_text().split()]


def resumed(folder: Path, before: bytes) -> Profile:
    path = csv_of(folder, "identity.onnx")
    assert path.read_bytes() == before
    assert before.endswith(b"\n")
    done = profile(folder, "--batches", "1,2,4,8", "--resume", *QUICK)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(before)
    return read_profile(path)


@pytest.mark.parametrize("to_group", [False, True])
def test_ctrl_c_keeps_the_rows_and_resume_goes_on(folder: Path, to_group: bool) -> None:
    with running(folder, "--batches", "1,2,4,8", "--min-time", "0.5") as process:
        workers = children_of(process.pid)
        os.kill(-process.pid if to_group else process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].endswith("the same command with --resume goes on.")
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    measured = resumed(folder, csv_of(folder, "identity.onnx").read_bytes())
    assert [row.batch for row in measured.rows] == [1, 2, 4, 8]


def test_kill_9_leaves_whole_rows_and_no_worker(folder: Path) -> None:
    with running(folder, "--batches", "1,2,4,8", "--min-time", "0.5") as process:
        workers = children_of(process.pid)
        process.kill()
        process.wait(20)
        _wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    measured = resumed(folder, csv_of(folder, "identity.onnx").read_bytes())
    assert [row.batch for row in measured.rows] == [1, 2, 4, 8]


def test_a_torn_row_is_dropped_with_a_remark(folder: Path) -> None:
    assert profile(folder, "--batches", "1,2", *QUICK).returncode == 0
    path = csv_of(folder, "identity.onnx")
    path.write_bytes(path.read_bytes()[:-10])
    done = profile(folder, "--batches", "1,2", "--resume", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "dropped a half-written last row" in done.stderr
    assert [row.batch for row in read_profile(path).rows] == [1, 2]


def test_a_batch_that_never_ends_ends_the_measurement(folder: Path) -> None:
    save_python(folder, "hangs", HANGS)
    config = ProfileConfig(model_repository=(folder / "models",), model=("hangs",))
    (target,) = find_targets(config, "cpu-x").targets
    model = target.model
    feeder = Feeder(batch_deadline_s=0.2)

    async def measure() -> None:
        spec = WorkerSpec(model.config, "1", model.folder, "python", Partition(), max_batch=4, warmup=False)
        worker = Worker(spec, on_done=feeder.on_done, on_death=feeder.on_death)
        facts = await worker.start(60)
        try:
            await feeder.feed(worker, random_request(facts.config, 1, {}), 1, 5, 0.1)
        finally:
            worker.kill()
            await worker.stop(1)

    with pytest.raises(MeasurementFailed, match=r"a batch has been running for 0\.2 s; gave up"):
        asyncio.run(measure())


needs_two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="a pair needs two cores")


def pairs_in(folder: Path) -> Pairs:
    (path,) = (folder / "out").glob("*/pairs.json")
    return read_pairs(path)


@needs_two_cores
def test_pairs_are_measured_stored_and_planned_with(folder: Path) -> None:
    onnx_models.save(folder / "models", "fixed", onnx_models.without_batch())
    done = profile(folder, "--pairs", "--batches", "1,4", "--plot", *QUICK)
    assert done.returncode == 0, done.stderr
    told = pairs_in(folder)
    assert {(p.me, p.my_batch, p.you, p.your_batch) for p in told.pairs} >= {
        ("fixed", 1, "fixed", 1),
        ("fixed", 1, "identity", 4),
        ("identity", 1, "identity", 4),
        ("identity", 4, "identity", 1),
        ("identity", 4, "fixed", 1),
    }
    for pair in told.pairs:
        assert pair.my_pct + pair.your_pct == 100
        assert 5 <= pair.rounds <= 30  # of both sides together where they are alike
        assert 0 < pair.low <= pair.slowdown <= pair.high
        assert pair.cpu_slowdown is not None
        assert pair.alone_per_s > 0
    assert told.loads.keys() == told.facts.models.keys() == {"fixed", "identity"}
    assert next((folder / "out").glob("*/pairs.png")).read_bytes().startswith(b"\x89PNG")
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("->")) <= 80
    (path,) = (folder / "out").glob("*/pairs.json")
    assert read_interference(path).slowdown("fixed", 50, [("identity", 50)]) >= 1


@needs_two_cores
def test_pairs_are_resumed_and_a_model_that_fails_does_not_stop_the_others(folder: Path) -> None:
    onnx_models.save(folder / "models", "broken", b"no model")
    save_python(folder, "fails", FAILS_ON_LARGE_BATCHES)
    done = profile(folder, "--pairs", "--batches", "1,4", *QUICK)
    assert done.returncode == 1
    assert "broken.onnx: " in done.stderr
    assert "fails on 50% beside identity on 50%, batches 4 and 1: " in done.stderr
    before = pairs_in(folder)
    assert {(p.me, p.you) for p in before.pairs} >= {("identity", "identity"), ("fails", "identity")}
    refused = profile(folder, "--pairs", "--batches", "1,4", *QUICK)
    assert refused.returncode == 2
    assert "measured before; --resume" in refused.stderr
    again = profile(folder, "--pairs", "--batches", "1,2", "--model", "identity", "--resume", "--json", *QUICK)
    assert again.returncode == 0, again.stderr
    now = pairs_in(folder)
    kept = [pair for pair in now.pairs if pair in before.pairs]
    assert kept == list(before.pairs)
    assert {p.my_batch for p in now.pairs if p.me == p.you == "identity"} == {1, 2, 4}
    assert len(json.loads(again.stdout)["measured"]["pairs"]) == len(now.pairs)


@needs_two_cores
def test_a_model_that_dies_beside_another_is_told(folder: Path) -> None:
    save_python(folder, "dies", DIES_LATER)
    done = profile(folder, "--pairs", "--batches", "1", "--shape", "x:2", *QUICK)
    assert done.returncode == 1
    (input_error, died) = sorted(done.stderr.splitlines(), key=lambda line: "died" in line)
    assert input_error == "identity.onnx: --shape x: no such input; 'identity' has input"
    assert died.startswith("dies on 50% beside dies on 50%, batches 1 and 1: the worker died: exited with code 7")


@needs_two_cores
def test_ctrl_c_keeps_the_pairs(folder: Path) -> None:
    process = subprocess.Popen(
        command(folder, "--pairs", "--batches", "1,2,4,8", "--min-time", "0.3"), stderr=subprocess.PIPE, text=True
    )
    try:
        _wait_for(lambda: any((folder / "out").glob("*/pairs.json")))
        workers = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr.splitlines()[-1].endswith("the same command with --resume goes on.")
    assert pairs_in(folder).pairs
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
