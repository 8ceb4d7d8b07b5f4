"""The host's processor and its control groups: trees of files as kernels write them, and this machine's own."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.devices.cgroup import CgroupLimits, cgroup_limits, core_list, core_ranges
from efserve.devices.cpu import (
    Cache,
    NumaNode,
    available_cores,
    cores_to_use,
    host_cpu,
    numa_nodes,
    usable_cores,
    usable_cores_here,
)

V2_MOUNT = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:31 {root} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    "34 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "35 31 0:33 {root} /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
)
V1_GROUPS = "4:memory:{path}\n3:cpuset:{path}\n2:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"
NO_LIMIT_V1 = "9223372036854771712"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_version_2_takes_the_tightest_of_all_ancestors(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/kubepods.slice/pod1/app",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/cpuset.cpus.effective": "0-63",
        "sys/fs/cgroup/kubepods.slice/cpu.max": "800000 100000",
        "sys/fs/cgroup/kubepods.slice/memory.max": "8589934592",
        "sys/fs/cgroup/kubepods.slice/cpuset.cpus.effective": "0-7",
        "sys/fs/cgroup/kubepods.slice/pod1/cpu.max": "250000 100000",
        "sys/fs/cgroup/kubepods.slice/pod1/memory.max": "max",
        "sys/fs/cgroup/kubepods.slice/pod1/app/cpu.max": "max 100000",
        "sys/fs/cgroup/kubepods.slice/pod1/app/memory.max": "17179869184",
        "sys/fs/cgroup/kubepods.slice/pod1/app/cpuset.cpus.effective": "2-3,6",
    }
    assert cgroup_limits(tree(tmp_path, files)) == CgroupLimits((2,), 2.5, (2, 3, 6), 8 << 30)


def test_version_1_has_a_tree_per_controller(tmp_path: Path) -> None:
    groups = "sys/fs/cgroup"
    files = {
        "proc/self/cgroup": V1_GROUPS.format(path="/batch/job"),
        "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
        f"{groups}/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        f"{groups}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        f"{groups}/cpu,cpuacct/batch/cpu.cfs_quota_us": "150000",
        f"{groups}/cpu,cpuacct/batch/cpu.cfs_period_us": "50000",
        f"{groups}/cpu,cpuacct/batch/job/cpu.cfs_quota_us": "400000",
        f"{groups}/cpu,cpuacct/batch/job/cpu.cfs_period_us": "100000",
        f"{groups}/cpuset/cpuset.cpus": "0-3",
        f"{groups}/cpuset/batch/cpuset.cpus": "",
        f"{groups}/cpuset/batch/cpuset.effective_cpus": "1-2",
        f"{groups}/memory/memory.limit_in_bytes": NO_LIMIT_V1,
        f"{groups}/memory/batch/memory.limit_in_bytes": "1073741824",
        f"{groups}/memory/batch/job/memory.limit_in_bytes": NO_LIMIT_V1,
    }
    assert cgroup_limits(tree(tmp_path, files)) == CgroupLimits((1,), 3.0, (1, 2), 1 << 30)


@pytest.mark.parametrize("mounted", ["/docker/abc", "/elsewhere"])
def test_version_1_in_a_container_counts_from_its_mount(tmp_path: Path, mounted: str) -> None:
    """Without a namespace of its own, a container sees its path on the host, and mounts of just that group."""
    files = {
        "proc/self/cgroup": V1_GROUPS.format(path="/docker/abc"),
        "proc/self/mountinfo": V1_MOUNTS.format(root=mounted),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648",
    }
    assert cgroup_limits(tree(tmp_path, files)).memory_limit_bytes == 2 << 30


def test_both_versions_at_once(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": V1_GROUPS.format(path="/") + "0::/",
        "proc/self/mountinfo": V1_MOUNTS.format(root="/")
        + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert cgroup_limits(tree(tmp_path, files)) == CgroupLimits((1, 2), 0.5, None, None)


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": r"31 23 0:26 / /my\040groups rw - cgroup2 cgroup2 rw",
        "my groups/memory.max": "4096",
    }
    assert cgroup_limits(tree(tmp_path, files)).memory_limit_bytes == 4096


def test_no_control_groups_set_no_limits(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == CgroupLimits()


@given(st.text())
def test_a_quota_that_is_not_a_number_is_none(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if any(letter.isdigit() for letter in text):
        return
    root = tmp_path_factory.mktemp("garbled")
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2_MOUNT}
    tree(root, files)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_bytes(text.encode(errors="replace"))
    assert cgroup_limits(root).cpu_quota_cores is None


@pytest.mark.parametrize(("text", "cores"), [("", ()), ("3", (3,)), ("0-2,7\n", (0, 1, 2, 7)), ("8,0-1", (0, 1, 8))])
def test_lists_of_cores(text: str, cores: tuple[int, ...]) -> None:
    assert core_list(text) == cores


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cores_are_written_as_they_are_read(cores: set[int]) -> None:
    assert core_list(core_ranges(sorted(cores))) == tuple(sorted(cores))


def test_neighbouring_cores_are_a_range() -> None:
    assert core_ranges((0, 1, 2, 7)) == "0-2,7"


@pytest.mark.parametrize(
    ("cores", "quota", "usable"), [(64, 2.5, 2), (64, None, 64), (2, 8.0, 2), (4, 0.5, 1), (4, 4.0, 4), (1, 1.9, 1)]
)
def test_a_quota_leaves_whole_cores(cores: int, quota: float | None, usable: int) -> None:
    assert usable_cores(cores, quota) == usable


@given(st.integers(1, 1024), st.none() | st.floats(0.001, 4096))
def test_usable_cores_are_within_both_limits(cores: int, quota: float | None) -> None:
    usable = usable_cores(cores, quota)
    assert 1 <= usable <= cores
    assert quota is None or usable == 1 or usable <= quota


def test_a_machine_of_two_nodes_with_two_threads_per_core(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n\nprocessor\t: 1\nmodel name\t: other",
        "proc/meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   4194304 kB",
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       6291456 kB\nNode 0 MemFree: 5 kB",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7",
        "sys/devices/system/node/node2/cpulist": "",
    }
    for core in range(8):
        cpu = f"sys/devices/system/cpu/cpu{core}"
        files[f"{cpu}/topology/thread_siblings_list"] = f"{core % 4},{core % 4 + 4}"
        for index, (level, kind, size, shared) in enumerate(
            [("1", "Data", "48K", f"{core % 4},{core % 4 + 4}"), ("3", "Unified", "32M", f"node{core // 2 % 2}")]
        ):
            files[f"{cpu}/cache/index{index}/level"] = level
            files[f"{cpu}/cache/index{index}/type"] = kind
            files[f"{cpu}/cache/index{index}/size"] = size
            files[f"{cpu}/cache/index{index}/shared_cpu_list"] = shared
    cpu_ = host_cpu(tree(tmp_path, files), (0, 1, 2, 4))
    assert (cpu_.model, cpu_.cores, cpu_.usable_cores, cpu_.cores_of_machine) == (
        "Some CPU @ 2.0GHz",
        (0, 1, 2, 4),
        4,
        8,
    )
    assert cpu_.siblings == ((0, 4), (1,), (2,))
    assert cpu_.numa_nodes == (NumaNode(0, (0, 1, 4), 6 << 30), NumaNode(1, (2,), None))
    assert cpu_.caches == (Cache(1, "data", 48 << 10, 3), Cache(3, "unified", 32 << 20, 2))
    assert (cpu_.memory_total_bytes, cpu_.memory_available_bytes) == (8 << 30, 4 << 30)


def test_a_kernel_that_tells_little(tmp_path: Path) -> None:
    cpu = host_cpu(tmp_path, (3, 5))
    assert cpu.model
    assert (cpu.siblings, cpu.numa_nodes, cpu.caches) == (((3,), (5,)), (NumaNode(0, (3, 5), None),), ())


def test_under_a_quota_only_so_many_cores_are_used(tmp_path: Path) -> None:
    group = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}
    assert cores_to_use(tree(tmp_path, group | {"sys/fs/cgroup/cpu.max": "150000 100000\n"})) == available_cores()[:1]
    assert cores_to_use(tree(tmp_path, group | {"sys/fs/cgroup/cpu.max": "max 100000\n"})) == available_cores()


def test_this_machine() -> None:
    cpu = host_cpu()
    assert cpu.cores == available_cores() == tuple(sorted(os.sched_getaffinity(0)))
    assert cpu.usable_cores == usable_cores_here() <= len(cpu.cores) <= cpu.cores_of_machine
    assert sorted(core for node in cpu.numa_nodes for core in node.cores) == list(cpu.cores)
    assert sorted(core for group in cpu.siblings for core in group) == list(cpu.cores)
    assert numa_nodes() == cpu.numa_nodes
    assert cpu.cgroup.versions
    assert cpu.cgroup.cores is None or set(cpu.cores) <= set(cpu.cgroup.cores)
    assert 0 < cpu.memory_available_bytes <= cpu.memory_total_bytes
