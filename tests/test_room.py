"""What this machine has to give."""

from efserve.devices.cpu import available_cores
from efserve.room import Gpu, Room, room_here


def test_the_room_of_this_machine_is_its_available_cores() -> None:
    room = room_here()
    assert sorted(core for node in room.nodes for core in node) == list(available_cores())
    assert 1 <= sum(map(len, room.usable)) <= len(available_cores())


def test_a_quota_takes_cores_from_the_last_nodes() -> None:
    nodes = ((0, 2), (1, 3), (4,))
    assert Room(nodes).usable == nodes
    assert Room(nodes, core_limit=3).usable == ((0, 2), (1,))


def test_gpus_have_names_and_uuids() -> None:
    whole, part = Gpu(0, "GPU-A"), Gpu(1, "MIG-b", slice_index=0)
    room = Room(((0,),), gpus=(whole, part))
    assert room.gpu("gpu0") is room.gpu("gpu-a") is room.gpu("0") is whole
    assert room.gpu("GPU1:0") is room.gpu("MIG-b") is part
    assert room.gpu("gpu1") is None
