"""Shares to partitions: no overlap, whole cores, few NUMA nodes, and sums that fit."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from efserve.asks import Ask
from efserve.errors import LoadFailed, UsageError
from efserve.partition import CPU, Partition
from efserve.placing import equip, place
from efserve.room import Gpu, Room

TWO = Room(((0, 1),))
GPUS = Room(((0, 1, 2, 3),), gpus=(Gpu(0, "GPU-a", 132), Gpu(1, "GPU-b", 132)))


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    """Up to four NUMA nodes with gaps in the numbers of their cores, and sometimes a quota."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    numbers = iter(draw(st.lists(st.integers(0, 200), min_size=sum(sizes), max_size=sum(sizes), unique=True)))
    nodes = tuple(tuple(next(numbers) for _ in range(size)) for size in sizes)
    return Room(nodes, draw(st.integers(0, sum(sizes))))


percentages = st.lists(st.floats(0.5, 100), min_size=1, max_size=6)


def asks_for(shares_pct: Sequence[float], unshared: int = 0) -> list[Ask]:
    """A model per share, and some without."""
    shared = [Ask(f"m{index}", share_pct=pct) for index, pct in enumerate(shares_pct)]
    return shared + [Ask(f"u{index}") for index in range(unshared)]


def cores_of(room: Room, *asks: Ask) -> list[tuple[int, ...]]:
    """The cores of each ask, of different models."""
    placed = place(asks, room).partitions
    return [placed[ask.model][0].cores for ask in asks]


@given(rooms(), percentages, st.integers(0, 2))
def test_partitions_never_overlap_and_everybody_has_a_core(room: Room, shares: list[float], unshared: int) -> None:
    total = sum(shares)
    shares = [pct * min(1.0, 100 / total) for pct in shares]
    try:
        placed = place(asks_for(shares, unshared), room).partitions
    except UsageError:
        assume(False)
    allowed = {core for node in room.usable for core in node}
    own = [placed[f"m{index}"][0] for index in range(len(shares))]
    for partition in own:
        assert partition.threads == len(partition.cores) >= 1
        assert set(partition.cores) <= allowed
    cores = [core for partition in own for core in partition.cores]
    assert len(cores) == len(set(cores))
    for index in range(unshared):
        (partition,) = placed[f"u{index}"]
        assert set(partition.cores) == allowed - set(cores) != set()


@given(rooms(), percentages, st.integers(0, 2))
def test_only_too_many_shares_are_refused(room: Room, shares: list[float], unshared: int) -> None:
    total = sum(shares)
    shares = [pct * min(1.0, 100 / total) for pct in shares]
    usable = sum(map(len, room.usable))
    least = sum(max(1, int(pct * usable / 100 + 1e-9)) for pct in shares)
    try:
        place(asks_for(shares, unshared), room)
    except UsageError:
        assert least + bool(unshared) > usable
    else:
        assert least + bool(unshared) <= usable


@given(rooms(), st.integers(1, 9))
def test_a_share_that_fits_into_a_node_stays_in_it(room: Room, cores: int) -> None:
    total = sum(map(len, room.usable))
    assume(any(len(node) >= cores for node in room.usable))
    (taken,) = cores_of(room, Ask("m", share_pct=100 * cores / total))
    assert len(taken) == cores
    assert any(set(taken) <= set(node) for node in room.usable)


def test_without_a_share_nobody_is_pinned() -> None:
    placed = place([Ask("a"), Ask("b"), Ask("b"), Ask("c", threads=7)], TWO)
    assert placed.notes == ()
    assert placed.partitions == {
        "a": (Partition(CPU, 2, units=2),),
        "b": (Partition(CPU, 1, units=2),) * 2,
        "c": (Partition(CPU, 7, units=2),),
    }


def test_half_of_two_cores_each() -> None:
    placed = place([Ask("a", share_pct=50), Ask("b", share_pct=50)], TWO)
    assert [part.cores for parts in placed.partitions.values() for part in parts] == [(0,), (1,)]
    assert placed.notes == ()


def test_the_same_model_several_times_has_several_partitions() -> None:
    placed = place([Ask("a", share_pct=50), Ask("a", share_pct=25), Ask("u")], Room(((0, 1, 2, 3),)))
    assert [part.cores for part in placed.partitions["a"]] == [(0, 1), (2,)]
    assert placed.partitions["u"][0].cores == (3,)


def test_rounding_is_told_and_leaves_a_core_to_the_others() -> None:
    placed = place([Ask("a", share_pct=80), Ask("u")], TWO)
    assert placed.partitions["a"][0].cores == (0,)
    assert placed.partitions["u"][0].cores == (1,)
    (note,) = placed.notes
    assert note == "a asked for 80 % of the CPU and gets 1 core of 2, 50 %: a share of the CPU is whole cores"
    assert place([Ask("a", share_pct=80)], TWO).partitions["a"][0].cores == (0, 1)


def test_shares_fill_numa_nodes() -> None:
    room = Room(((0, 1, 2, 3), (4, 5, 6, 7)))
    assert cores_of(room, Ask("a", share_pct=25), Ask("b", share_pct=50), Ask("c", share_pct=25)) == [
        (4, 5),
        (0, 1, 2, 3),
        (6, 7),
    ]


def test_a_quota_leaves_fewer_cores() -> None:
    room = Room(((0, 1, 2, 3), (4, 5, 6, 7)), core_limit=6)
    assert cores_of(room, Ask("a", share_pct=50), Ask("u")) == [(0, 1, 2), (3, 4, 5)]


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        (asks_for([60, 60]), r"the shares of the CPU are m0 60 % \+ m1 60 % = 120 %, more than all of it"),
        (asks_for([30, 30, 30]), "need 3 of 2 cores, at least one each, and 2 are free"),
        (asks_for([50, 50], 1), "take all 2 cores and leave none for 'u0': .* --share u0=PCT"),
        (asks_for([100], 1), "leave none for 'u0'"),
    ],
)
def test_what_does_not_fit_is_said(asks: list[Ask], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        place(asks, TWO)


def test_a_later_model_gets_what_is_free() -> None:
    held = {"a": (Partition(CPU, 1, (1,), 50, units=2),)}
    assert place([Ask("b", share_pct=50)], TWO, held).partitions["b"][0].cores == (0,)
    assert place([Ask("u")], TWO, held).partitions["u"][0].cores == (0,)
    with pytest.raises(UsageError, match=r"a 50 % \+ b 60 % = 110 %"):
        place([Ask("b", share_pct=60)], TWO, held)


@pytest.mark.parametrize("cores", [(), (0,)])
def test_a_later_share_takes_no_core_from_those_who_run(cores: tuple[int, ...]) -> None:
    held = {"u": (Partition(CPU, 1, cores),)}
    room = TWO if not cores else Room(((0,),))
    with pytest.raises(UsageError, match=r"0 are free, for 'u' run on the others"):
        place([Ask("b", share_pct=50)], room, held)


def test_gpus_get_shares_and_the_host_cores_that_are_left() -> None:
    asks = [Ask("a", "GPU-a", 40, 2**30), Ask("b", "GPU-b", 50), Ask("c", "GPU-b"), Ask("h", share_pct=25)]
    a, b, c, h = (parts[0] for parts in place(asks, GPUS).partitions.values())
    assert a == Partition("GPU-a", 3, (1, 2, 3), 40, 2**30, units=132)
    assert (b.share_pct, c.share_pct) == (50, 0)
    assert h.cores == (0,)


def test_more_than_a_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"gpu1 are a 60 % \+ b 50 % = 110 %"):
        place([Ask("a", "GPU-b", 60), Ask("b", "GPU-b", 50)], GPUS)


def test_a_share_is_held_by_mps_where_a_daemon_is_and_by_a_green_context_else() -> None:
    half, whole = Partition("GPU-a", share_pct=50), Partition("GPU-a")
    assert equip(half, "/run/mps") == Partition("GPU-a", share_pct=50, means="mps", pipe_directory="/run/mps")
    assert equip(whole, "/run/mps").means == "mps"  # every process may have to go through the daemon
    assert equip(equip(half, "/run/mps"), "") == Partition("GPU-a", share_pct=50, means="green")
    assert equip(whole, "").means == equip(Partition("GPU-a", share_pct=100), "").means == ""
    assert equip(Partition(CPU, share_pct=50), "/run/mps").means == ""
    with pytest.raises(LoadFailed, match="memory limit on GPU-a needs MPS"):
        equip(Partition("GPU-a", memory_limit_bytes=9), "")
