"""Which shares of which devices a model asks for: by the command line, or else by the instance groups of its config.

Pure. Who gets which part of the machine is decided in `placing.py`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from efserve.errors import ConfigError, UsageError
from efserve.model_config import InstanceGroup, InstanceKind, ModelConfig
from efserve.partition import CPU
from efserve.room import Room
from efserve.shares import Share


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a command line asks for one model; it goes before the model's config."""

    shares: tuple[Share, ...] = ()
    memory_limit_bytes: int = 0  # 0: as the config says
    instances: int = 0  # without a share; 0: as the config says
    threads: int = 0  # of an engine without a share; 0: its part of the cores
    can_use_gpus: bool = False  # whether KIND_AUTO means the GPUs, where there are any


@dataclass(frozen=True, slots=True)
class Ask:
    """One instance of a model, and what it shall get."""

    model: str
    device: str = CPU  # or the uuid of a GPU
    share_pct: float = 0.0  # 0: no share
    memory_limit_bytes: int = 0
    threads: int = 0


def asks_of(config: ModelConfig, wishes: Wishes, room: Room) -> tuple[Ask, ...]:
    """One ask per instance of the model.

    Raises UsageError where the command line names a device that is not there, ConfigError where the config does.
    """
    groups = config.instance_groups or (InstanceGroup(),)
    if wishes.shares:
        limit_bytes = wishes.memory_limit_bytes or groups[0].memory_limit_bytes
        devices = [_named(share, config, groups[0], wishes, room) for share in wishes.shares]
        return tuple(
            Ask(config.name, device, share.pct, limit_bytes)
            for share, device in zip(wishes.shares, devices, strict=True)
        )
    if wishes.instances:  # as many as the command line says, of the first kind that the config names
        groups = (replace(groups[0], count=wishes.instances),)
    return tuple(
        Ask(
            config.name,
            device,
            group.share_pct,
            wishes.memory_limit_bytes or group.memory_limit_bytes,
            wishes.threads,
        )
        for group in groups
        for device in _devices(config, group, wishes, room)
        for _ in range(group.count)
    )


def _named(share: Share, config: ModelConfig, group: InstanceGroup, wishes: Wishes, room: Room) -> str:
    """The device of a share."""
    if not share.device:
        return _devices(config, group, wishes, room)[0]
    if share.device.lower() == CPU:
        return CPU
    gpu = room.gpu(share.device)
    if gpu is None:
        known = ", ".join([CPU, *(f"{gpu.name} ({gpu.uuid})" for gpu in room.gpus)])
        raise UsageError(f"--share {share.model}: there is no device '{share.device}'; this machine has {known}")
    return gpu.uuid


def _devices(config: ModelConfig, group: InstanceGroup, wishes: Wishes, room: Room) -> list[str]:
    """The devices of an instance group: never none."""
    if group.kind == CPU.upper() or (group.kind == "AUTO" and not (wishes.can_use_gpus and room.gpus)):
        return [CPU]
    where = f"instance group {group.name or config.name} of model {config.name}"
    for index in group.gpus:
        if all(gpu.index != index for gpu in room.gpus):
            known = ", ".join(str(gpu.index) for gpu in room.gpus) or "none; see `efserve doctor`"
            raise ConfigError(
                f"{where} specifies invalid or unsupported gpu id {index}. GPUs with at least the minimum required "
                f"CUDA compute compatibility are: {known}"
            )
    if not room.gpus:
        raise ConfigError(
            f"{where} has kind KIND_GPU but no GPUs are available; see `efserve doctor`, or use KIND_AUTO or KIND_CPU"
        )
    wanted = group.gpus or sorted({gpu.index for gpu in room.gpus})
    return [gpu.uuid for index in wanted for gpu in room.gpus if gpu.index == index]


def served_groups(config: ModelConfig, wishes: Wishes, asks: Sequence[Ask], room: Room) -> tuple[InstanceGroup, ...]:
    """The instance groups as they are served: the config's where the command line leaves them, their kinds decided."""
    if config.instance_groups and not wishes.shares and not wishes.instances:
        on_gpus = wishes.can_use_gpus and bool(room.gpus)
        kind: InstanceKind = "GPU" if on_gpus else "CPU"
        return tuple(replace(group, kind=kind) if group.kind == "AUTO" else group for group in config.instance_groups)
    groups: list[InstanceGroup] = []
    for device, count in Counter(ask.device for ask in asks).items():
        gpu = room.gpu(device)
        name = f"{config.name}_{len(groups)}"
        groups.append(
            InstanceGroup(name, "CPU", count) if gpu is None else InstanceGroup(name, "GPU", count, (gpu.index,))
        )
    return tuple(groups)
