"""Which shares of which devices a model asks for: by the command line, or else by the instance groups of its config.

Pure. What a machine has to give is a `Room`; who gets which part of it is decided in `placing.py`.
"""

import re
from dataclasses import dataclass, replace

from efserve.errors import ConfigError, UsageError
from efserve.model_config import InstanceGroup, ModelConfig
from efserve.partition import CPU

_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or MIG slice that a worker may be given."""

    uuid: str
    sm_count: int = 0  # 0: not known
    pipe_directory: str = ""  # of the MPS daemon that serves it; empty: none does


@dataclass(frozen=True, slots=True)
class Room:
    """What this machine has to give to workers.

    `nodes`: the cores of each NUMA node, in the order in which they are to be given out: cores that share a physical
    one side by side.
    """

    nodes: tuple[tuple[int, ...], ...]
    core_limit: int = 0  # cores that may be busy at once, by a quota of processor time; 0: all of them
    gpus: tuple[Gpu, ...] = ()

    @property
    def usable(self) -> tuple[tuple[int, ...], ...]:
        """The nodes with no more cores in all than may be busy at once."""
        left, nodes = self.core_limit or sum(map(len, self.nodes)), []
        for cores in self.nodes:
            nodes.append(cores[:left])
            left -= len(nodes[-1])
        return tuple(node for node in nodes if node)

    def gpu(self, device: str) -> Gpu | None:
        """The GPU called `gpu0`, by its index, or by its uuid."""
        index = device.lower().removeprefix("gpu")
        if index.isdecimal():
            return self.gpus[int(index)] if int(index) < len(self.gpus) else None
        return next((gpu for gpu in self.gpus if gpu.uuid == device), None)


@dataclass(frozen=True, slots=True)
class Share:
    """`--share`: percent of a device for one instance of a model."""

    model: str
    pct: float
    device: str = ""  # cpu, gpu0 or a uuid; empty: as the model's config says, else the CPU


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """`--memory-limit`: what each instance of a model may use of its device's memory."""

    model: str
    limit_bytes: int


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


def parse_share(text: str) -> Share:
    """`MODEL=PCT[,DEVICE]`; raises UsageError for anything else."""
    model, _, rest = text.rpartition("=")
    number, comma, device = rest.partition(",")
    try:
        pct = float(number.removesuffix("%"))
    except ValueError:
        pct = 0.0
    if not model or not 0 < pct <= 100 or (comma and not device):
        raise UsageError(
            f"--share is '{text}', expected MODEL=PCT or MODEL=PCT,DEVICE with a percentage above 0, up to 100, such "
            "as digits=50 or resnet50=40,gpu0"
        )
    return Share(model, pct, device)


def parse_memory_limit(text: str) -> MemoryLimit:
    """`MODEL=SIZE` with a size such as 512M or 4G, in powers of 1024; raises UsageError for anything else."""
    model, _, size = text.rpartition("=")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", size, re.IGNORECASE)
    limit_bytes = round(float(found[1]) * _SIZE_UNITS[found[2].upper()]) if found else 0
    if not model or limit_bytes < 1:
        raise UsageError(f"--memory-limit is '{text}', expected MODEL=SIZE such as digits=512M or resnet50=4G")
    return MemoryLimit(model, limit_bytes)


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
        known = ", ".join([CPU, *(f"gpu{index} ({gpu.uuid})" for index, gpu in enumerate(room.gpus))])
        raise UsageError(f"--share {share.model}: there is no device '{share.device}'; this machine has {known}")
    return gpu.uuid


def _devices(config: ModelConfig, group: InstanceGroup, wishes: Wishes, room: Room) -> list[str]:
    """The devices of an instance group: never none."""
    if group.kind == CPU.upper() or (group.kind == "AUTO" and not (wishes.can_use_gpus and room.gpus)):
        return [CPU]
    if not room.gpus:
        raise ConfigError(
            f"instance_group of '{config.name}' has kind KIND_GPU, but efserve finds no GPU on this machine; see "
            "`efserve doctor`, or use KIND_AUTO or KIND_CPU"
        )
    missing = [index for index in group.gpus if index >= len(room.gpus)]
    if missing:
        raise ConfigError(
            f"instance_group of '{config.name}' lists GPU {missing[0]}, but this machine has {len(room.gpus)}, counted "
            "from 0"
        )
    return [room.gpus[index].uuid for index in group.gpus or range(len(room.gpus))]
