"""Pairs of models: which batches count, how slow is slow, the file and its resuming."""

import asyncio
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve import pairs
from efserve.errors import ConfigError, MeasurementFailed, UsageError
from efserve.inference import BatchTiming
from efserve.model_config import ModelConfig
from efserve.pairs import Load, Pairs, PairsFile
from efserve.planning.interference import read_interference
from efserve.profiler import pairing
from efserve.profiler.options import ProfileConfig
from efserve.profiler.pair_runs import one_engine_each, pair_batches, points_of
from efserve.profiler.pairing import Round, Stretch
from efserve.profiler.sampling import Batch, Feeder, random_request
from efserve.profiler.shares import CpuDevice, DeviceFacts
from efserve.profiler.targets import find_targets
from efserve.worker.handle import Worker
from made_pairs import FACTS, MODEL, PAIR, a_file


def batches(*outputs_ns: int) -> list[Batch]:
    return [Batch(1.0, 1.2, at_ns, None) for at_ns in outputs_ns]


ascending = st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True).map(sorted)


@given(ascending, ascending)
def test_only_batches_that_ended_while_both_ran_count(first: list[int], second: list[int]) -> None:
    ones, others = pairing.side_by_side(batches(*first), batches(*second))
    begin, end = max(first[0], second[0]), min(first[-1], second[-1])
    assert [batch.output_ns for batch in ones] == [at for at in first if begin <= at <= end]
    assert [batch.output_ns for batch in others] == [at for at in second if begin <= at <= end]


def test_a_stretch_needs_two_batches() -> None:
    with pytest.raises(MeasurementFailed, match="longer --min-time"):
        pairing.stretch(batches(5), 1.0)
    assert pairing.stretch(batches(0, 10**9, 2 * 10**9), 0.5) == Stretch(1.0, (1.0, 1.0, 1.0), 0.5)


def a_round(slowdown: float, per_s: float = 100.0) -> Round:
    return Round(Stretch(per_s, (1.0,), 1.0), Stretch(per_s / slowdown, (slowdown,), slowdown))


@given(st.lists(st.floats(0.5, 10), min_size=1, max_size=20), st.floats(0.01, 1e6))
def test_slowdown_is_the_median_of_ratios_whatever_the_speed(slowdowns: list[float], per_s: float) -> None:
    found = pairing.summary([a_round(slowdown, per_s * (1 + at)) for at, slowdown in enumerate(slowdowns)])
    ordered = sorted(slowdowns)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert found.slowdown == pytest.approx(middle, abs=1e-4)
    assert found.cpu_slowdown == pytest.approx(middle, abs=1e-4)
    assert found.low - 1e-4 <= found.slowdown <= found.high + 1e-4
    assert found.rounds == len(slowdowns)


def test_one_disturbed_round_does_not_decide() -> None:
    calm = [a_round(1.1)] * 6
    assert pairing.summary([*calm, a_round(9.0)]).slowdown == 1.1


def test_rounds_end_when_the_median_is_known_or_at_the_limit() -> None:
    calm, wild = [a_round(1.1)] * 20, [a_round(1.0), a_round(3.0)] * 10
    assert [pairing.are_enough(calm[:count]) for count in (0, 4, 5)] == [False, False, True]
    assert [pairing.are_enough(wild[:count]) for count in (5, 14, 15)] == [False, False, True]


@given(st.lists(st.integers(1, 64), unique=True, min_size=1, max_size=5), st.booleans())
def test_every_two_batches_are_met_once(sizes: list[int], alike: bool) -> None:
    met = points_of(sizes, sizes, alike=alike)
    wanted = {(mine, yours) for mine in sizes for yours in sizes}
    assert len(met) == len(set(met))
    if alike:
        assert {tuple(sorted(point)) for point in met} == {tuple(sorted(point)) for point in wanted}
        assert len(met) == math.comb(len(sizes) + 1, 2)
    else:
        assert set(met) == wanted


def test_batches_of_pairs_by_options() -> None:
    assert pair_batches(ProfileConfig(), 0) == (1, 8, 32)
    assert pair_batches(ProfileConfig(), 64) == (1, 8, 64)
    assert pair_batches(ProfileConfig(max_batch=4), 64) == (1, 4)
    assert pair_batches(ProfileConfig(max_batch=1), 64) == (1,)
    assert pair_batches(ProfileConfig(batches=(16, 2)), 64) == (2, 16)


def splits_of(total: int, config: ProfileConfig) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    device = CpuDevice(DeviceFacts("cpu-x", tuple(range(total)), "one per core", "cores"))
    return [(one.partition.cores, other.partition.cores) for one, other in device.splits(config)]


@given(st.integers(2, 32), st.booleans())
def test_splits_are_complementary(total: int, grid: bool) -> None:
    splits = splits_of(total, ProfileConfig(grid=grid))
    assert all(one and other and (*one, *other) == tuple(range(total)) for one, other in splits)
    counts = [len(one) for one, _ in splits]
    assert counts == (list(range(1, total)) if grid else sorted({total // 2, total - total // 2}))


def test_splits_that_cannot_be_are_refused() -> None:
    assert splits_of(4, ProfileConfig(cores=(1,))) == [((0,), (1, 2, 3))]
    assert splits_of(4, ProfileConfig(shares=(75,))) == [((0, 1, 2), (3,))]
    with pytest.raises(UsageError, match="--pairs needs 2 cores, one for each model: efserve may use 1"):
        splits_of(1, ProfileConfig())
    with pytest.raises(UsageError, match="leaves none for the other model"):
        splits_of(2, ProfileConfig(cores=(2,)))
    with pytest.raises(UsageError, match="--shares 30: a share of 4 cores is a multiple of 25%"):
        splits_of(4, ProfileConfig(shares=(30,)))


def test_a_model_runs_on_one_engine(tmp_path: Path) -> None:
    for name in ("a/1/model.onnx", "a/1/model.pt", "b/1/model.onnx", "b/1/model.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "config.pbtxt").write_text('platform: "pytorch_libtorch"')
    config = ProfileConfig(model_repository=(tmp_path,))
    chosen = one_engine_each(find_targets(config, "cpu-x").targets)
    assert [target.name for target in chosen] == ["a.onnx", "b.torchscript"]


def test_pairs_are_kept_and_found_again(tmp_path: Path) -> None:
    path = pairs.pairs_path(tmp_path, "cpu-x-2c")
    other = replace(PAIR, me="b", you="a")
    with PairsFile(path, keep=False) as file:
        file.describe(FACTS)
        file.add([PAIR, other])
        assert file.has([PAIR.key, other.key])
        assert not file.has([PAIR.key, replace(PAIR, my_batch=2).key])
        file.add([replace(PAIR, slowdown=2.0)])
        file.set_load("a", Load(dram=0.5))
    assert pairs.read_pairs(path) == Pairs(
        FACTS, {"a": Load(0.0, 0.5), "b": Load()}, (other, replace(PAIR, slowdown=2.0))
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["pairs.json"]


def test_resuming_takes_new_models_and_refuses_changed_ones(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    with PairsFile(path, keep=False) as file:
        file.describe(FACTS)
        file.add([PAIR])
    with PairsFile(path, keep=True) as file:
        file.describe(replace(FACTS, models={"c": MODEL}))
        assert file.has([PAIR.key])
        file.add([replace(PAIR, me="c")])
    assert pairs.read_pairs(path).facts.models.keys() == {"a", "b", "c"}
    before = path.read_bytes()
    changed = replace(FACTS, driver="2", models={"a": replace(MODEL, engine_version="onnxruntime 2")})
    why = "driver was '' and is '2'; engine_version of a was"
    with PairsFile(path, keep=True) as file, pytest.raises(UsageError, match=why):
        file.describe(changed)
    assert path.read_bytes() == before
    with PairsFile(path, keep=False) as file:
        file.describe(changed)
        assert path.read_bytes() == before  # until something is measured
        file.add([PAIR])
    assert pairs.read_pairs(path).facts == changed


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"cannot write to .*: Not a directory; .*--output"),
        PairsFile(tmp_path / "file" / "cpu" / "pairs.json", keep=True),
    ):
        pass


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with (
        PairsFile(tmp_path / "pairs.json", keep=True),
        pytest.raises(UsageError, match="is being written by another process"),
        PairsFile(tmp_path / "pairs.json", keep=True),
    ):
        pass


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    with pytest.raises(ConfigError, match="`efserve profile --pairs` measures them"):
        pairs.read_pairs(path)
    path.write_text('{"loads": {}, "pairs": []}')
    with pytest.raises(ConfigError, match="does not hold pairs that"):
        pairs.read_pairs(path)
    with pytest.raises(ConfigError), PairsFile(path, keep=True):
        pass
    with PairsFile(path, keep=False) as file:
        file.describe(FACTS)
        file.add([PAIR])
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(ConfigError, match="is of schema 9"):
        pairs.read_pairs(path)


def test_a_full_disk_is_told_and_keeps_what_was_there(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk."""
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_pairs as t
from efserve.errors import MeasurementFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.PairsFile(Path(sys.argv[1]), keep=False) as file:
    file.describe(t.FACTS)
    file.add([t.PAIR])
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    try:
        file.add([t.replace(t.PAIR, me="b")])
    except MeasurementFailed as error:
        print(error)
"""
    path = tmp_path / "pairs.json"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot write" in done.stdout
    assert pairs.read_pairs(path).pairs == (PAIR,)


def test_the_planner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    content = a_file()
    with PairsFile(path, keep=False) as file:
        file.describe(content.facts)
        file.add(content.pairs)
    found = read_interference(path)
    assert found.slowdown("model0", 50.0, [("model1", 50.0)]) == pytest.approx(1.08)  # the worst of the batches
    assert found.slowdown("model0", 25.0, [("model1", 75.0)]) == pytest.approx(1.045)  # without loads: the mean of all


def test_the_file_is_json_for_anybody(tmp_path: Path) -> None:
    with PairsFile(tmp_path / "pairs.json", keep=False) as file:
        file.describe(FACTS)
        file.add([PAIR])
    told = json.loads((tmp_path / "pairs.json").read_text())
    assert told["pairs"][0]["me"] == "a"
    assert told["facts"]["models"]["a"]["engine"] == "onnx"


@given(st.lists(st.none() | st.floats(0, 100), max_size=9), st.floats(1, 100))
def test_load_of_the_whole_device_by_the_use_of_a_share(used_pcts: list[float | None], share_pct: float) -> None:
    alone = [Stretch(1.0, (1.0,), None, used) for used in used_pcts]
    load = pairing.dram_load(alone, share_pct)
    assert 0 <= load <= 1
    if not any(used_pcts):
        assert load == 0
    assert pairing.dram_load([Stretch(1.0, (1.0,), None, used) for used in (20, None, 30, 25)], 50) == 0.5


class FakeWorker:
    """Answers a batch after `every` turns of the event loop; after `last` batches it is dead."""

    def __init__(self, feeder: Feeder, every: int = 1, last: int = 10**9) -> None:
        self.batches = 0
        self._feeder = feeder
        self._every = every
        self._last = last

    def send(self, slot: int, requests: object) -> None:
        self._after(self._every, slot)

    def _after(self, turns: int, slot: int) -> None:
        loop = asyncio.get_running_loop()
        if turns:
            loop.call_soon(self._after, turns - 1, slot)
            return
        self.batches += 1
        me = cast(Worker, self)
        if self.batches > self._last:
            self._feeder.on_death(me, "it was told to")
            return
        now_ns = time.monotonic_ns()
        self._feeder.on_done(me, slot, [()], BatchTiming(now_ns, now_ns, now_ns, now_ns))


def fed_together(fast_last: int = 10**9, slow_every: int = 40) -> tuple[object, object]:
    """What two feeders give: one of a quick worker, one of a slow one, of each at least 5 batches."""
    request = random_request(ModelConfig("m"), 1, {})

    async def both() -> tuple[object, object]:
        fast, slow = Feeder(), Feeder()
        quick = cast(Worker, FakeWorker(fast, last=fast_last))
        late = cast(Worker, FakeWorker(slow, every=slow_every))
        one, other = await asyncio.wait_for(
            asyncio.gather(
                fast.feed(quick, request, 2, 5, 0.0, slow),
                slow.feed(late, request, 2, 5, 0.0, fast),
                return_exceptions=True,
            ),
            30,
        )
        return one, other

    return asyncio.run(both())


def test_the_quick_side_keeps_on_until_the_slow_one_has_enough() -> None:
    fast, slow = fed_together()
    assert isinstance(fast, list)
    assert isinstance(slow, list)
    assert len(fast) > 5 * len(slow)
    ones, others = pairing.side_by_side(fast, slow)
    assert len(ones) >= 5
    assert len(others) >= 5


def test_a_side_that_dies_lets_the_other_end() -> None:
    fast, slow = fed_together(fast_last=20)
    assert isinstance(fast, MeasurementFailed)
    assert isinstance(slow, list)
