"""Memory limits on the CPU: each crossing is told once."""

from dataclasses import replace

from efserve.frontend.service import Placement
from efserve.server.memory_watch import MemoryWatch

BELOW = Placement("m", "1", 0, 4242, "READY", 100, (), memory_limit_bytes=200)
BEYOND = replace(BELOW, rss_bytes=201)


def test_a_crossing_is_told_once_and_again_after_a_return() -> None:
    looks = [[BELOW], [BEYOND], [BEYOND], [BELOW], [BEYOND], [replace(BEYOND, pid=4343)]]
    watch = MemoryWatch(iter(looks).__next__)
    assert [watch.look() for _ in looks] == [[], [BEYOND], [], [], [BEYOND], [replace(BEYOND, pid=4343)]]


def test_only_limits_of_the_hosts_memory_are_watched() -> None:
    assert not replace(BEYOND, memory_limit_bytes=0).is_beyond_memory
    assert not replace(BEYOND, device="GPU-a").is_beyond_memory
    assert not replace(BEYOND, rss_bytes=200).is_beyond_memory
