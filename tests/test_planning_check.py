"""The checker: it finds every way in which a plan does not hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from efserve.errors import ConfigError
from efserve.planning.check import check
from efserve.planning.plan import Capacity, Demand, Device, Placement, Plan, Point, Tenant, plan_json, read_plan

POINTS = (Point(50, 4, 1, 200, 20, 400), Point(50, 4, 2, 300, 26, 800), Point(100, 4, 1, 400, 10, 400))
CAPACITIES = (Capacity("a", "onnx", POINTS), Capacity("b", "onnx", POINTS))


def tenant(model: str = "a", rate: float = 100, processes: int = 1) -> Tenant:
    return Tenant(model, "onnx", 4, processes, rate, 200, 20, 40)


def plan(*placements: Placement, slo_ms: float = 40, memory_mb: float = 0) -> Plan:
    models = sorted({t.model for p in placements for t in p.tenants})
    demands = tuple(Demand(model, 100, slo_ms) for model in models)
    return Plan("test", (Device("gpu0", "x", memory_mb), Device("gpu1", "x", memory_mb)), demands, placements)


HALF = Placement("gpu0", 50, 20, (tenant(),))
GOOD = plan(HALF, Placement("gpu0", 50, 20, (tenant("b"),)))
TURNS = plan(Placement("gpu0", 100, 20, (tenant("a"), tenant("b"))))


@pytest.mark.parametrize("good", [GOOD, TURNS, replace(TURNS, headroom_pct=100)])
def test_a_plan_that_holds(good: Plan) -> None:
    assert check(good, CAPACITIES) == []


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (plan(HALF, Placement("gpu0", 100, 10, (tenant("b"),))), "shares add up to 150"),
        (replace(GOOD, max_partitions=1), "2 partitions, at most 1"),
        (plan(replace(HALF, device="gpu7")), "none of the plan's devices"),
        (plan(replace(HALF, tenants=())), "runs nothing"),
        (plan(replace(HALF, share_pct=30)), "no profile row"),
        (plan(HALF, slo_ms=39), "up to 40 ms with batch 4 on 50 %, its SLO is 39 ms"),
        (plan(replace(HALF, tenants=(tenant(rate=201),))), "201 req/s are planned on 50 %, which carries 200"),
        (replace(plan(HALF), headroom_pct=101), "carries 200"),
        (plan(replace(HALF, tenants=(tenant(rate=99),))), "99 req/s of 100 are placed"),
        (plan(replace(HALF, cycle_ms=30)), "up to 50 ms"),
        (plan(replace(HALF, tenants=(tenant(processes=2),)), slo_ms=51), "up to 52 ms"),
        (plan(Placement("gpu0", 100, 19, (tenant("a"), tenant("b")))), "longer than its 19 ms"),
        (plan(Placement("gpu0", 100, 0, (tenant("a"), tenant("b")))), "which carries 0"),
        (plan(Placement("gpu0", 100, 50, (tenant("a"), tenant("b"))), slo_ms=99), "which carries 80"),
        (replace(GOOD, demands=GOOD.demands[:1]), "nobody asked for b"),
        (plan(HALF, Placement("gpu0", 50, 20, (tenant("b"),)), memory_mb=800), "800 MB are needed"),
    ],
)
def test_what_does_not_hold_is_told(broken: Plan, why: str) -> None:
    assert any(why in sentence for sentence in check(broken, CAPACITIES)), check(broken, CAPACITIES)


def test_a_smaller_batch_that_takes_longer_counts() -> None:
    slow = tuple(replace(c, points=(*c.points, Point(50, 2, 1, 90, 22))) for c in CAPACITIES)
    assert check(plan(HALF, slo_ms=44), slow) == []
    assert "up to 44 ms" in check(plan(HALF, slo_ms=43), slow)[0]
    assert "which carries 181.8" in check(plan(replace(HALF, tenants=(tenant(rate=182),)), slo_ms=44), slow)[0]
    assert (
        "longer than its 43 ms"
        in check(
            replace(TURNS, placements=(replace(TURNS.placements[0], cycle_ms=43),)),
            (*(replace(c, points=(Point(100, 4, 1, 400, 10), Point(100, 1, 1, 50, 22))) for c in CAPACITIES),),
        )[0]
    )


def test_several_processes_cannot_take_turns() -> None:
    broken = plan(Placement("gpu0", 50, 52, (tenant("a", 10, 2), tenant("b", 10, 2))), slo_ms=99)
    assert any("cannot take turns" in sentence for sentence in check(broken, CAPACITIES))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_json(TURNS))
    assert read_plan(path) == TURNS


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", plan_json(replace(GOOD, schema=9))])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        read_plan(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_plan(tmp_path / "none.json")
