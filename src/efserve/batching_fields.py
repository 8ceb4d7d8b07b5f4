"""Triton's `dynamic_batching` as protobuf, to values and back, with its rules and the texts of its refusals."""

from typing import Any

from efserve.errors import ConfigError
from efserve.model_config import DynamicBatching, ModelConfig, QueuePolicy
from efserve.triton_messages import model_config_pb2 as pb


def read_batching(message: Any, name: str) -> DynamicBatching | None:
    """The dynamic batching of the ModelConfig `message` of model `name`; ConfigError for what it can not be."""
    if not message.HasField("dynamic_batching"):
        return None
    where = f"config.pbtxt of '{name}'"
    if message.max_batch_size == 0 and message.input:
        raise ConfigError(f"{where}: dynamic_batching needs max_batch_size of 1 or more")
    batching = message.dynamic_batching
    preferred = tuple(sorted(set(batching.preferred_batch_size)))
    if preferred and preferred[0] < 1:
        raise ConfigError(f"{where}: dynamic batching preferred size must be positive for {name}, not {preferred[0]}")
    if preferred and preferred[-1] > (message.max_batch_size or preferred[-1]):
        raise ConfigError(
            f"{where}: dynamic batching preferred size must be <= max batch size for {name}, but {preferred[-1]} is "
            f"above {message.max_batch_size}"
        )
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise ConfigError(f"{where}: default priority level must be in range [1, {levels}] for {name}, not {default}")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise ConfigError(
                f"{where}: priority queue policy must have priority level in range [1, {levels}] for {name}, not "
                f"{level}"
            )
    if batching.preserve_ordering:
        _check_order(batching, name)
    return DynamicBatching(
        preferred_batch_sizes=preferred,
        max_queue_delay_us=batching.max_queue_delay_microseconds,
        queue_policy=_queue_policy(batching.default_queue_policy),
        preserve_ordering=batching.preserve_ordering,
        priority_levels=levels,
        default_priority_level=default,
        priority_policies={level: _queue_policy(p) for level, p in sorted(batching.priority_queue_policy.items())},
    )


def write_batching(message: Any, config: ModelConfig) -> None:
    """Add what `config` says to the ModelConfig `message`; the preferred size that it leaves open is the largest."""
    batching = config.dynamic_batching
    if batching is None:
        return
    target = message.dynamic_batching
    preferred = batching.preferred_batch_sizes or ((config.max_batch_size,) if config.batches else ())
    target.preferred_batch_size.extend(preferred)
    target.max_queue_delay_microseconds = batching.max_queue_delay_us
    target.preserve_ordering = batching.preserve_ordering
    target.priority_levels = batching.priority_levels
    target.default_priority_level = batching.default_priority_level
    target.SetInParent()
    if batching.queue_policy != QueuePolicy():
        _write_policy(target.default_queue_policy, batching.queue_policy)
    for level, policy in batching.priority_policies.items():
        _write_policy(target.priority_queue_policy[level], policy)


def _check_order(batching: Any, name: str) -> None:
    if batching.priority_levels > 1:
        raise ConfigError(
            f"config.pbtxt of '{name}': Only one priority level is allowed when 'preserve_ordering' is true for {name}"
        )
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        if policy.default_timeout_microseconds and policy.timeout_action == pb.ModelQueuePolicy.DELAY:
            raise ConfigError(
                f"config.pbtxt of '{name}': Queue policy can not have DELAY as timeout action when 'preserve_ordering' "
                f"is true for {name}"
            )


def _queue_policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=policy.max_queue_size,
        default_timeout_us=policy.default_timeout_microseconds,
        timeout_action="DELAY" if policy.timeout_action == pb.ModelQueuePolicy.DELAY else "REJECT",
        allow_timeout_override=policy.allow_timeout_override,
    )


def _write_policy(message: Any, policy: QueuePolicy) -> None:
    message.max_queue_size = policy.max_queue_size
    message.default_timeout_microseconds = policy.default_timeout_us
    message.timeout_action = pb.ModelQueuePolicy.TimeoutAction.Value(policy.timeout_action)
    message.allow_timeout_override = policy.allow_timeout_override
