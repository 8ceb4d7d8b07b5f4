"""What a model asks for: the command line before the config, devices by name, kinds of instance groups."""

import pytest

from efserve.errors import ConfigError, UsageError
from efserve.model_config import InstanceGroup, ModelConfig
from efserve.shares import (
    Ask,
    Gpu,
    MemoryLimit,
    Room,
    Share,
    Wishes,
    asks_of,
    parse_memory_limit,
    parse_share,
)

HERE = Room(((0, 1),))
GPUS = Room(((0, 1),), gpus=(Gpu("GPU-a"), Gpu("GPU-b")))
PLAIN = ModelConfig("m")


def with_groups(*groups: InstanceGroup) -> ModelConfig:
    return ModelConfig("m", instance_groups=groups)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("digits=50", Share("digits", 50)),
        ("digits=12.5%,gpu0", Share("digits", 12.5, "gpu0")),
        ("a=b=100,cpu", Share("a=b", 100, "cpu")),
    ],
)
def test_shares_are_read(text: str, share: Share) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "m", "=50", "m=", "m=0", "m=101", "m=nan", "m=half", "m=50,", "m=-5"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--share is '{text}', expected MODEL=PCT"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "limit_bytes"),
    [("m=4G", 4 * 2**30), ("m=512M", 2**29), ("m=1.5g", 3 * 2**29), ("m=1000", 1000), ("m=2KiB", 2048), ("m=1MB", 2**20)],
)
def test_memory_limits_are_read(text: str, limit_bytes: int) -> None:
    assert parse_memory_limit(text) == MemoryLimit("m", limit_bytes)


@pytest.mark.parametrize("text", ["", "m", "=4G", "m=", "m=0", "m=4X", "m=-1G", "m=G"])
def test_what_is_no_memory_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--memory-limit is '{text}', expected MODEL=SIZE"):
        parse_memory_limit(text)


@pytest.mark.parametrize(
    ("config", "wishes", "room", "asks"),
    [
        (PLAIN, Wishes(), HERE, [Ask("m")]),
        (PLAIN, Wishes(instances=2, threads=3), HERE, [Ask("m", threads=3)] * 2),
        (PLAIN, Wishes(), GPUS, [Ask("m")]),
        (PLAIN, Wishes(can_use_gpus=True), GPUS, [Ask("m", "GPU-a"), Ask("m", "GPU-b")]),
        (PLAIN, Wishes(can_use_gpus=True), HERE, [Ask("m")]),
        (
            with_groups(InstanceGroup(kind="CPU"), InstanceGroup(kind="GPU", count=2, gpus=(1,), share_pct=25)),
            Wishes(),
            GPUS,
            [Ask("m"), Ask("m", "GPU-b", 25), Ask("m", "GPU-b", 25)],
        ),
        (
            with_groups(InstanceGroup(kind="CPU", count=2, share_pct=25, memory_limit_bytes=7)),
            Wishes(instances=1),
            HERE,
            [Ask("m", share_pct=25, memory_limit_bytes=7)],
        ),
        (
            with_groups(InstanceGroup(kind="CPU", count=2, share_pct=25, memory_limit_bytes=7)),
            Wishes(memory_limit_bytes=9),
            HERE,
            [Ask("m", share_pct=25, memory_limit_bytes=9)] * 2,
        ),
        (
            with_groups(InstanceGroup(kind="CPU", count=2, share_pct=25)),
            Wishes((Share("m", 50), Share("m", 10, "gpu1"), Share("m", 20, "GPU-a"), Share("m", 5, "CPU"))),
            GPUS,
            [Ask("m", share_pct=50), Ask("m", "GPU-b", 10), Ask("m", "GPU-a", 20), Ask("m", share_pct=5)],
        ),
        (with_groups(InstanceGroup(kind="GPU")), Wishes((Share("m", 50),)), GPUS, [Ask("m", "GPU-a", 50)]),
    ],
)
def test_asks(config: ModelConfig, wishes: Wishes, room: Room, asks: list[Ask]) -> None:
    assert list(asks_of(config, wishes, room)) == asks


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="instance_group of 'm' has kind KIND_GPU, but efserve finds no GPU"):
        asks_of(with_groups(InstanceGroup(kind="GPU")), Wishes(), HERE)
    with pytest.raises(ConfigError, match="lists GPU 2, but this machine has 2, counted from 0"):
        asks_of(with_groups(InstanceGroup(kind="GPU", gpus=(0, 2))), Wishes(), GPUS)
    with pytest.raises(UsageError, match="there is no device 'gpu0'; this machine has cpu$"):
        asks_of(PLAIN, Wishes((Share("m", 50, "gpu0"),)), HERE)
    with pytest.raises(UsageError, match=r"this machine has cpu, gpu0 \(GPU-a\), gpu1 \(GPU-b\)"):
        asks_of(PLAIN, Wishes((Share("m", 50, "MIG-x"),)), GPUS)
