"""What this machine has to give."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_driver_that_hangs_is_told_in_time(tmp_path: Path) -> None:
    """With a library that never comes back, asked by pynvml itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "hangs.c"
    source.write_text("int pause(void);\nint nvmlInitWithFlags(unsigned flags) { for (;;) pause(); }\n")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", "from efserve.room import room_here; room_here(0.5)"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.stderr.splitlines()[-1] == (
        "efserve.errors.LoadFailed: the NVIDIA driver did not tell of this machine's GPUs within 0.5 s; "
        "see `efserve doctor`"
    )
