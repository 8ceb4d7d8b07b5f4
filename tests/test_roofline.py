"""The roofline's formulas, from where a model is compute-bound, and how it is told and drawn."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from efserve.errors import UsageError
from efserve.graph_cost.count import GraphCost
from efserve.profiler.ceilings_gpu import measure_with
from efserve.reports.roofline_plot import plot_roofline
from efserve.reports.roofline_table import ceiling_lines, ceilings_table, model_lines, model_table
from efserve.roofline import Ceiling, Ceilings, ModelRoofline, compute_bound_from, point

GIGA = 1e9


class FakeTorch:
    """As much of torch as the ceilings of a GPU need: a device whose clock moves as its work would take."""

    __version__ = "fake"
    L2_BYTES = 40_000_000
    float32, float64, float16, bfloat16, uint8 = "float32", "float64", "float16", "bfloat16", "uint8"

    def __init__(self) -> None:
        self.now_s = 0.0
        self.operations_per_s = {"float32": 60e12, "float16": 120e12}
        self.memory_bytes_per_s = 2e12
        self.cache_bytes_per_s = 5e12
        self.cuda = SimpleNamespace(
            device_count=lambda: 2, get_device_properties=self._properties, Event=lambda enable_timing: FakeEvent(self)
        )
        self.backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False)))

    def _properties(self, device: "int | tuple[str, int]") -> SimpleNamespace:
        index = device if isinstance(device, int) else device[1]
        return SimpleNamespace(
            uuid=("abcd", "1234")[index],
            name="Some GPU",
            total_memory=80_000_000_000,
            multi_processor_count=100,
            L2_cache_size=self.L2_BYTES,
        )

    def device(self, kind: str, index: int) -> tuple[str, int]:
        return kind, index

    def inference_mode(self) -> AbstractContextManager[None]:
        return nullcontext()

    def ones(self, shape: int | tuple[int, int], dtype: str, device: tuple[str, int]) -> "FakeTensor":
        assert device == ("cuda", 1)
        return FakeTensor(self, shape, dtype)

    def mm(self, a: "FakeTensor", b: "FakeTensor") -> None:
        assert isinstance(a.shape, tuple)
        assert a.dtype == b.dtype
        self.now_s += 2 * a.shape[0] ** 3 / self.operations_per_s[a.dtype]


@dataclass
class FakeTensor:
    """Something with a size."""

    torch: FakeTorch
    shape: int | tuple[int, int]
    dtype: str

    def copy_(self, source: "FakeTensor") -> None:
        assert isinstance(source.shape, int)
        is_cached = 2 * source.shape <= self.torch.L2_BYTES
        per_s = self.torch.cache_bytes_per_s if is_cached else self.torch.memory_bytes_per_s
        self.torch.now_s += 2 * source.shape / per_s


@dataclass
class FakeEvent:
    """A stamp in the device's own time."""

    torch: FakeTorch
    at_s: float = 0.0

    def record(self) -> None:
        self.at_s = self.torch.now_s

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000 * (end.at_s - self.at_s)


def ceiling(per_s: float, cpu_pct: float = 100.0) -> Ceiling:
    return Ceiling(per_s, 0.97 * per_s, cpu_pct, 30, "a kernel")


CEILINGS = Ceilings(
    device="Some CPU",
    part="2 of 2 cores, 2 threads",
    library="onnxruntime 1",
    peaks={"FP32": ceiling(500 * GIGA), "INT8": ceiling(2000 * GIGA)},
    memory=ceiling(50 * GIGA),
    cache=ceiling(200 * GIGA),
    cache_bytes=1_000_000,
    measured_at="2026-01-01T00:00:00+00:00",
)


def cost(operations: dict[str, int], fused_bytes: int, working_set_bytes: int = 10**9) -> GraphCost:
    return GraphCost(
        parameters=1000,
        macs=sum(operations.values()) // 2,
        operations=operations,
        weight_bytes=4000,
        unfused_bytes=2 * fused_bytes,
        fused_bytes=fused_bytes,
        working_set_bytes=working_set_bytes,
        guessed={},
        left_out={},
    )


def test_ridge() -> None:
    assert CEILINGS.ridge == 10
    assert point(CEILINGS, 1, cost({"FP32": 1000}, 100), None).bound == "compute"
    assert point(CEILINGS, 1, cost({"FP32": 999}, 100), None).bound == "memory"


@given(st.integers(1, 64), st.integers(1, 10**12), st.integers(1, 10**10))
def test_no_point_is_above_the_roof(batch: int, operations: int, moved: int) -> None:
    at = point(CEILINGS, batch, cost({"FP32": operations}, moved), None)
    assert at.intensity == operations / moved == 2 * at.unfused_intensity
    roof = min(CEILINGS.peak, at.intensity * CEILINGS.memory.per_s)
    assert at.most_operations_per_s == pytest.approx(roof)
    assert at.most_rows_per_s == pytest.approx(roof * batch / operations)


def test_what_fits_in_the_cache_comes_from_there() -> None:
    cached = point(CEILINGS, 1, cost({"FP32": 100}, 100, working_set_bytes=1_000_000), None)
    assert cached.bound == "cache"
    assert cached.most_operations_per_s == pytest.approx(200 * GIGA)
    beyond = point(CEILINGS, 1, cost({"FP32": 100}, 100, working_set_bytes=1_000_001), None)
    assert beyond.bound == "memory"
    assert beyond.most_operations_per_s == pytest.approx(50 * GIGA)


def test_each_precision_has_its_own_peak() -> None:
    mixed = cost({"FP32": 500, "INT8": 2000}, 1)
    assert CEILINGS.compute_s(mixed) == pytest.approx(2e-9)
    assert CEILINGS.compute_s(cost({"FP16": 500}, 1)) == pytest.approx(1e-9)  # as in FP32, for want of its own


def test_what_is_achieved() -> None:
    at = point(CEILINGS, 4, cost({"FP32": 4_000_000_000}, 10), 125.0)
    assert at.most_rows_per_s == pytest.approx(500)
    assert at.achieved_pct == pytest.approx(25)
    assert at.measured_operations_per_s == pytest.approx(125 * GIGA)


@given(st.sets(st.integers(1, 200), min_size=1).map(sorted), st.integers(1, 250))
def test_the_first_compute_bound_batch_is_found(batches: list[int], true_first: int) -> None:
    found = compute_bound_from(batches, lambda batch: batch >= true_first)
    assert found == (0 if true_first > batches[-1] else max(true_first, batches[0]))


def test_a_model_that_falls_out_of_the_cache_is_compute_bound_where_it_stays_so() -> None:
    assert compute_bound_from((1, 2, 4, 8, 16), lambda batch: batch != 4) == 5
    assert compute_bound_from((1, 2, 4), lambda batch: batch == 1) == 0


def model(name: str, intensity: float, measured_part: float = 0.0) -> ModelRoofline:
    points = []
    for batch in (1, 2, 4, 8, 16, 32):
        moved = round(10**9 * (batch + 4) / intensity / 5)
        bare = point(CEILINGS, batch, cost({"FP32": batch * 10**9}, moved), None)
        measured = bare.most_rows_per_s * measured_part or None
        points.append(replace(bare, measured_rows_per_s=measured))
    found = compute_bound_from((1, 2, 4, 8, 16, 32), lambda batch: 10 * (batch + 4) <= 5 * intensity * batch)
    return ModelRoofline(name, "1", "onnx", {"input": "FP32 [batch,3,224,224]"}, tuple(points), found, "")


def printed(*things: object, width: int) -> str:
    console = Console(width=width, file=None, record=True)
    with console.capture() as captured:
        for thing in things:
            console.print(thing, markup=False)
    return captured.get()


@pytest.mark.parametrize("width", [60, 80])
def test_tables_fit_and_hold_every_figure(width: int) -> None:
    shown = model("resnet", 5.0, 0.5)
    text = printed(ceilings_table(CEILINGS), model_table(shown), width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for figure in ("FP32 peak", "500 Gop/s", "2,000 Gop/s", "50 GB/s", "200 GB/s", "97%", "memory", "compute", "50%"):
        assert figure in text
    assert text.count("\n") >= 14


def test_sentences() -> None:
    assert ceiling_lines(CEILINGS) == [
        "Ridge point: 10.0 operations per byte of memory, 2.5 per byte of the 1 MB cache (FP32)."
    ]
    disturbed = replace(CEILINGS, memory=ceiling(50 * GIGA, 62.0), cache=None)
    assert "part of their time: memory 62%." in ceiling_lines(disturbed)[-1]
    assert "Always compute-bound." in model_lines(model("m", 1000.0))
    assert "Never compute-bound up to batch 32." in model_lines(model("m", 1.0))
    assert "Compute-bound from batch 4 on." in model_lines(model("m", 4.0))
    unsure = model("m", 4.0)
    first = replace(unsure.points[0], cost=replace(unsure.points[0].cost, guessed={"own.A": 1}, left_out={"Loop": 2}))
    lines = model_lines(replace(unsure, points=(first, *unsure.points[1:]), remark="there is no profile x"))
    assert lines[-3:] == [
        "! Not known, counted as elementwise: own.A.",
        "! Not counted, so the figures are too low by what they do: Loop (2 times).",
        "Nothing to compare with: there is no profile x.",
    ]


@pytest.mark.parametrize("count", [1, 8])
def test_a_picture_of_any_number_of_models(count: int, tmp_path: Path) -> None:
    models = [model(f"model_{at}", 0.5 * 2**at, 0.3 if at % 2 else 0.0) for at in range(count)]
    plot_roofline(CEILINGS, models, tmp_path / "roofline.png")
    plot_roofline(replace(CEILINGS, cache=None, cache_bytes=0), models, tmp_path / "without.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("precisions", "peaks"), [((), {"FP32"}), (("FP16", "INT8"), {"FP32", "FP16"})])
def test_ceilings_of_a_gpu(precisions: tuple[str, ...], peaks: set[str]) -> None:
    torch = FakeTorch()
    measured = measure_with(torch, "GPU-1234", precisions)
    assert measured.peaks.keys() == peaks
    assert measured.peak == pytest.approx(torch.operations_per_s["float32"])
    assert measured.memory.per_s == pytest.approx(torch.memory_bytes_per_s)
    assert measured.cache is not None
    assert measured.cache.per_s == pytest.approx(torch.cache_bytes_per_s)
    assert (measured.device, measured.cache_bytes) == ("Some GPU", torch.L2_BYTES)
    if "FP16" in peaks:
        assert measured.peak_of("FP16") == pytest.approx(torch.operations_per_s["float16"])


def test_a_gpu_that_torch_does_not_see_is_told() -> None:
    with pytest.raises(UsageError, match="torch fake does not see GPU GPU-99"):
        measure_with(FakeTorch(), "GPU-99", ())
