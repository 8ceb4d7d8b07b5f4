"""Capacity tables from the profiles of one kind of device."""

from pathlib import Path

from efserve.errors import UsageError
from efserve.planning.plan import Capacity, Point
from efserve.profiles import ProfileRow, read_profile

PRECISIONS = ("fp16", "bf16", "int8")  # of models called `<name>_<precision>`


def kinds(root: Path) -> list[str]:
    """The kinds of device of which profiles lie below `root`, in the order of their names."""
    return sorted({path.parent.name for path in root.glob("*/*.csv")})


def read_capacities(root: Path, kind: str) -> tuple[Capacity, ...]:
    """What every profiled model can do on a kind of device. Raises UsageError where no profile of it is there."""
    paths = sorted((root / kind).glob("*.csv"))
    if not paths:
        there = ", ".join(kinds(root)) or "none"
        raise UsageError(f"no profiles of {kind!r} in {root}; there: {there}; `efserve profile --grid` makes them")
    profiles = [read_profile(path) for path in paths]
    own = tuple(
        Capacity(profile.facts.model, profile.facts.engine, tuple(_point(row) for row in profile.rows))
        for profile in profiles
    )
    tensors = {profile.facts.model: profile.facts.inputs for profile in profiles}
    return (*own, *(found for capacity in own if (found := _in_place(capacity, tensors)) is not None))


def _in_place(capacity: Capacity, tensors: dict[str, dict[str, str]]) -> Capacity | None:
    """What a model in another precision can do in the place of the one that it was made from, for the same inputs."""
    original, _, precision = capacity.model.rpartition("_")
    if precision not in PRECISIONS or tensors.get(original) != tensors[capacity.model]:
        return None
    return Capacity(original, f"{capacity.engine}:{precision}", capacity.points)


def _point(row: ProfileRow) -> Point:
    """A row for planning: the latency is that which 99 of 100 batches keep, with the way to the worker and back.

    A worker of a plan has one batch at a time, so the way there costs throughput too.
    """
    way_ms = max(0.0, row.roundtrip_ms - row.mean_ms)  # both are means
    return Point(
        share_pct=row.share_pct,
        batch=row.batch,
        processes=1,
        throughput_per_s=min(row.throughput_per_s, row.batch / (row.mean_ms + way_ms) * 1000),
        latency_ms=row.p99_ms + way_ms,
        memory_mb=row.peak_memory_mb if row.device_memory_mb is None else row.device_memory_mb,
        utilization_pct=row.utilization_pct,
        mean_ms=row.mean_ms + way_ms,
        std_ms=row.std_ms,
        p50_ms=row.p50_ms + way_ms,
        p90_ms=row.p90_ms + way_ms,
    )
