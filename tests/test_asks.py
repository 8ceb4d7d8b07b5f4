"""What a model asks for: the command line before the config, devices by name, kinds of instance groups."""

import pytest

from efserve.asks import Ask, Wishes, asks_of
from efserve.errors import ConfigError, UsageError
from efserve.model_config import InstanceGroup, ModelConfig
from efserve.room import Gpu, Room
from efserve.shares import Share

HERE = Room(((0, 1),))
GPUS = Room(((0, 1),), gpus=(Gpu(0, "GPU-a"), Gpu(1, "GPU-b")))
PLAIN = ModelConfig("m")


def with_groups(*groups: InstanceGroup) -> ModelConfig:
    return ModelConfig("m", instance_groups=groups)


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
    with pytest.raises(ConfigError, match="instance group m of model m has kind KIND_GPU but no GPUs are available"):
        asks_of(with_groups(InstanceGroup(kind="GPU")), Wishes(), HERE)
    with pytest.raises(ConfigError, match=r"specifies invalid or unsupported gpu id 2\. GPUs with .* are: 0, 1"):
        asks_of(with_groups(InstanceGroup(kind="GPU", gpus=(0, 2))), Wishes(), GPUS)
    with pytest.raises(UsageError, match=r"there is no device 'gpu0'; this machine has cpu$"):
        asks_of(PLAIN, Wishes((Share("m", 50, "gpu0"),)), HERE)
    with pytest.raises(UsageError, match=r"this machine has cpu, gpu0 \(GPU-a\), gpu1 \(GPU-b\)"):
        asks_of(PLAIN, Wishes((Share("m", 50, "MIG-x"),)), GPUS)


def test_the_slices_of_a_gpu_are_devices() -> None:
    room = Room(((0, 1),), gpus=(Gpu(0, "MIG-a", slice_index=0), Gpu(0, "MIG-b", slice_index=1), Gpu(1, "GPU-c")))
    group = with_groups(InstanceGroup(kind="GPU", gpus=(0,)))
    assert [ask.device for ask in asks_of(group, Wishes(), room)] == ["MIG-a", "MIG-b"]
    assert asks_of(PLAIN, Wishes((Share("m", 50, "gpu0:1"),)), room) == (Ask("m", "MIG-b", 50),)
