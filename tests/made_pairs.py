"""Pairs of models that nobody measured."""

from dataclasses import replace

from efserve.pairs import Load, MeasuredPair, PairFacts, PairModel, Pairs

MODEL = PairModel("1", "onnx", "onnxruntime 1", "00" * 32, {"x": "FP32 [batch,4]"})
FACTS = PairFacts(
    device="cpu-x-2c",
    cpu_model="X",
    total_cores=2,
    share_means="cores",
    gpu="",
    driver="",
    threads="one per core",
    models={"a": MODEL, "b": MODEL},
    min_time_s=1.0,
    efserve_version="0.1.0",
    kernel="6",
    python="3.11",
    libraries={},
    measured_at="2026-01-01T00:00:00+00:00",
)
PAIR = MeasuredPair("a", 50.0, 1, "b", 50.0, 8, 1.2, 1.1, 1.3, 1.15, 5, 100.0, 83.3, 1.0, 1.5, 2.0)


def a_file(models: int = 2, sizes: tuple[int, ...] = (1, 8), shares: tuple[float, ...] = (50.0,)) -> Pairs:
    names = [f"model{at}" for at in range(models)]
    found = [
        replace(
            PAIR,
            me=me,
            my_pct=share,
            my_batch=mine,
            you=you,
            your_pct=100 - share,
            your_batch=yours,
            slowdown=1 + yours / 100,
        )
        for share in shares
        for me in names
        for you in names
        for mine in sizes
        for yours in sizes
    ]
    return Pairs(replace(FACTS, models=dict.fromkeys(names, MODEL)), dict.fromkeys(names, Load()), tuple(found))
