"""Triton's `instance_group` as protobuf, to values and back, with the shares that a model's parameters give its groups.

Triton has no field for a share, so it is a parameter: `share_pct` and `memory_limit_mb` for every group of the model,
`NAME.share_pct` and `NAME.memory_limit_mb` for the group called NAME.
"""

from typing import Any

from efserve.errors import ConfigError
from efserve.model_config import InstanceGroup, InstanceKind, ModelConfig
from efserve.shares import LARGEST_LIMIT_BYTES, SMALLEST_LIMIT_BYTES
from efserve.triton_messages import model_config_pb2 as pb

_KINDS: dict[int, InstanceKind] = {
    pb.ModelInstanceGroup.KIND_AUTO: "AUTO",
    pb.ModelInstanceGroup.KIND_CPU: "CPU",
    pb.ModelInstanceGroup.KIND_GPU: "GPU",
}
_SHARE, _MEMORY = "share_pct", "memory_limit_mb"


def read_groups(message: Any, name: str) -> tuple[InstanceGroup, ...]:
    """The groups of the ModelConfig `message` of model `name`; one where only its parameters give a share.

    A group without a count has one instance, as in Triton. Raises ConfigError for what no group can be.
    """
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    names = [group.name or f"{name}_{index}" for index, group in enumerate(message.instance_group)]
    for key in parameters:
        group, _, field = key.rpartition(".")
        if group and field in (_SHARE, _MEMORY) and group not in names:
            known = ", ".join(names) or "none"
            raise ConfigError(f"config.pbtxt of '{name}': parameter '{key}' is of no instance_group; it has {known}")
    if not message.instance_group and not parameters.keys() & {_SHARE, _MEMORY}:
        return ()
    groups = message.instance_group or [pb.ModelInstanceGroup()]
    return tuple(
        _group(group, label, parameters, name) for label, group in zip(names or [f"{name}_0"], groups, strict=True)
    )


def write_groups(message: Any, config: ModelConfig) -> None:
    """Add the groups of `config` to the ModelConfig `message`; a config that says nothing has one CPU instance."""
    for index, group in enumerate(config.instance_groups or (InstanceGroup(config.name, "CPU"),)):
        message.instance_group.add(
            name=group.name or f"{config.name}_{index}",
            count=group.count,
            kind=pb.ModelInstanceGroup.Kind.Value(f"KIND_{group.kind}"),
            gpus=group.gpus,
        )


def _group(message: Any, label: str, parameters: dict[str, str], model: str) -> InstanceGroup:
    where = f"config.pbtxt of '{model}': instance_group"
    if message.kind not in _KINDS:
        kind = pb.ModelInstanceGroup.Kind.Name(message.kind)
        raise ConfigError(f"{where} kind {kind} is not supported; use KIND_AUTO, KIND_CPU or KIND_GPU")
    if message.count < 0:
        raise ConfigError(f"{where} count is {message.count}, expected 1 or more")
    kind = _KINDS[message.kind]
    group = f"config.pbtxt of '{model}': instance group {label} of model {model}"
    if kind == "CPU" and message.gpus:
        raise ConfigError(
            f"{group} has kind KIND_CPU but specifies one or more GPUs: {list(message.gpus)}; use KIND_GPU"
        )
    if (least := min(message.gpus, default=0)) < 0:
        raise ConfigError(
            f"{group} specifies invalid or unsupported gpu id {least}. GPUs with at least the minimum required CUDA "
            "compute compatibility have indexes from 0"
        )
    if len(set(message.gpus)) < len(message.gpus):
        raise ConfigError(f"{where} '{label}' lists a GPU twice in gpus {list(message.gpus)}; use count instead")
    share_pct = _number(parameters, label, _SHARE, model)
    if share_pct > 100:
        raise ConfigError(f"config.pbtxt of '{model}': {_SHARE} is {share_pct:g}, expected at most 100")
    limit_bytes = _number(parameters, label, _MEMORY, model) * 2**20
    if limit_bytes and not SMALLEST_LIMIT_BYTES <= limit_bytes <= LARGEST_LIMIT_BYTES:
        raise ConfigError(
            f"config.pbtxt of '{model}': {_MEMORY} is {limit_bytes / 2**20:g}, expected megabytes (2^20 bytes) from 1 "
            f"to {LARGEST_LIMIT_BYTES // 2**20}"
        )
    return InstanceGroup(
        name=label,
        kind="GPU" if message.gpus else kind,
        count=max(1, message.count),
        gpus=tuple(message.gpus),
        share_pct=share_pct,
        memory_limit_bytes=round(limit_bytes),
    )


def _number(parameters: dict[str, str], group: str, key: str, model: str) -> float:
    """A parameter of the group, else of all groups; 0 where neither is given."""
    text = parameters.get(f"{group}.{key}", parameters.get(key, ""))
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"config.pbtxt of '{model}': parameter {key} is '{text}', expected a number above 0")
    return value
