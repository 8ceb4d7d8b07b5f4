"""What is known of a model before it runs: its config in Triton's terms, and the signature of its file.

Owns the values and the rules that complete a config from a file. Reading `config.pbtxt` and writing the protocol's
JSON is `pbtxt.py`; finding models on disk is `repository.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from efserve.errors import ConfigError
from efserve.tensors import Shape, TensorSpec

DEFAULT_MAX_BATCH = 4  # Triton's own default for a completed config

TimeoutAction = Literal["REJECT", "DELAY"]
InstanceKind = Literal["AUTO", "CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """`default_queue_policy`: what may wait, how many requests (0: no limit) and how long (0: for ever)."""

    max_queue_size: int = 0
    default_timeout_us: int = 0
    timeout_action: TimeoutAction = "REJECT"
    allow_timeout_override: bool = False


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """`dynamic_batching`: how requests are gathered into one batch."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    queue_policy: QueuePolicy = QueuePolicy()
    preserve_ordering: bool = False  # answers leave in the order of their requests
    priority_levels: int = 0  # 1 is the highest; 0: all requests are equal
    default_priority_level: int = 0
    priority_policies: dict[int, QueuePolicy] = field(default_factory=dict)  # level -> policy, where it has its own

    @property
    def may_run_ahead(self) -> bool:
        """Whether a batch may leave the queue before a worker is free for it, as nothing depends on when it does."""
        policy = self.queue_policy
        is_limited = policy.max_queue_size or policy.default_timeout_us or policy.allow_timeout_override
        return not (self.priority_levels or is_limited)

    def policy(self, level: int) -> QueuePolicy:
        """The policy of one level."""
        return self.priority_policies.get(level, self.queue_policy)

    def level(self, priority: int) -> int:
        """The level at which a request with this priority waits, 1 for the highest; what is none gets the default."""
        if not 1 <= priority <= self.priority_levels:
            priority = self.default_priority_level
        return max(1, priority)


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One input of a warm-up sample, without the batch; `file` below the model's folder `warmup`, or zeros or noise."""

    name: str
    datatype: str
    dims: Shape
    file: str = ""
    is_random: bool = False


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """`model_warmup`: inputs that run before the first request, `count` times."""

    name: str
    inputs: tuple[WarmupInput, ...]
    rows: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`instance_group`: instances on one kind of device, and the share of it that each of them gets by parameters."""

    name: str = ""
    kind: InstanceKind = "AUTO"
    count: int = 1  # on the CPU, or on each of the GPUs
    gpus: tuple[int, ...] = ()  # by index; empty: all of them
    share_pct: float = 0.0  # of the device, for each instance; 0: no share
    memory_limit_bytes: int = 0  # for each instance; 0: no limit


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """`version_policy`: the `latest` N versions, or the `specific` ones, or (both empty) all."""

    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Triton's ModelConfig, as far as efserve supports it.

    `inputs` and `outputs` have no batch dimension when `max_batch_size` >= 1; with 0 the model does not batch and the
    dims are the tensor's own. Without `dynamic_batching` no two requests share a batch.
    """

    name: str
    engine: str = ""  # onnx, torchscript, openvino, tensorrt, python; empty: decided by the files of the version
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    instance_groups: tuple[InstanceGroup, ...] = ()  # empty: not said
    version_policy: VersionPolicy = VersionPolicy()
    default_model_filename: str = ""
    label_filenames: dict[str, str] = field(default_factory=dict)  # output name -> file in the model's folder
    parameters: dict[str, str] = field(default_factory=dict)
    warmup: tuple[WarmupSample, ...] = ()
    response_cache: bool = False
    optional_inputs: tuple[str, ...] = ()  # names of inputs that a request may leave out
    input_reshapes: dict[str, Shape] = field(default_factory=dict)  # input -> its dims for the model, if others
    output_reshapes: dict[str, Shape] = field(default_factory=dict)
    optimization: str = ""  # Triton's hints for its backends, in protobuf text; told to clients, without effect here
    image_formats: dict[str, str] = field(default_factory=dict)  # input -> FORMAT_NCHW or FORMAT_NHWC, told to clients

    @property
    def batches(self) -> bool:
        """True when tensors carry a batch dimension in front of `dims`."""
        return self.max_batch_size >= 1

    @property
    def max_rows(self) -> int:
        """Most rows that one execution may have."""
        return max(1, self.max_batch_size)

    def with_max_batch(self, max_batch_size: int) -> "ModelConfig":
        """The config with another maximum; preferred sizes beyond it are dropped, for no batch can reach them."""
        batching = self.dynamic_batching
        if batching is not None:
            reachable = tuple(size for size in batching.preferred_batch_sizes if size <= max_batch_size)
            batching = replace(batching, preferred_batch_sizes=reachable)
        return replace(self, max_batch_size=max_batch_size, dynamic_batching=batching)

    def input_shape(self, spec: TensorSpec) -> Shape:
        """Shape of an input or output as clients see it: with -1 in front where the model batches."""
        return (-1, *spec.dims) if self.batches else spec.dims


@dataclass(frozen=True, slots=True)
class FileSignature:
    """Inputs and outputs as the model file tells them, shapes whole; empty where it tells nothing (TorchScript)."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


def complete(config: ModelConfig, file: FileSignature, max_batch: int = DEFAULT_MAX_BATCH) -> ModelConfig:
    """The config with what it is silent about taken from the model file, checked against the file where it is not.

    A config without inputs gets `max_batch_size` = `max_batch` and dynamic batching when every tensor's first
    dimension is free, as Triton completes ONNX models. Raises ConfigError where config and file contradict each other,
    or where neither says what the tensors are.
    """
    if not file.inputs:
        if not (config.inputs and config.outputs):
            raise ConfigError(
                f"config of '{config.name}': its file holds no tensor names and shapes, so config.pbtxt must list "
                "'input' and 'output'; `efserve convert` writes them"
            )
        return config
    if config.inputs and config.outputs:
        _check_specs(config, "input", config.inputs, file.inputs)
        _check_specs(config, "output", config.outputs, file.outputs)
        return config
    can_batch = all(spec.dims and spec.dims[0] == -1 for spec in (*file.inputs, *file.outputs))
    if config.max_batch_size == 0 and not config.inputs and not config.outputs and can_batch:
        dynamic = config.dynamic_batching or DynamicBatching()
        config = replace(config, max_batch_size=max_batch, dynamic_batching=dynamic)
    if config.batches and not can_batch:
        raise ConfigError(
            f"autofill failed for model '{config.name}': model does not support batching while non-zero max_batch_size "
            "is specified; set max_batch_size: 0 or export the model with a free first dimension of each tensor"
        )
    skip = 1 if config.batches else 0
    filled = replace(
        config,
        inputs=config.inputs or tuple(TensorSpec(s.name, s.datatype, s.dims[skip:]) for s in file.inputs),
        outputs=config.outputs or tuple(TensorSpec(s.name, s.datatype, s.dims[skip:]) for s in file.outputs),
    )
    return complete(filled, file, max_batch)


def _check_specs(config: ModelConfig, kind: str, stated: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> None:
    by_name = {spec.name: spec for spec in found}
    if kind == "input" and len(stated) != len(found):
        raise ConfigError(
            f"unable to load model '{config.name}', configuration expects {len(stated)} inputs, model provides "
            f"{len(found)}: {', '.join(by_name)}"
        )
    for spec in stated:
        actual = by_name.get(spec.name)
        if actual is None:
            raise ConfigError(
                f"config of '{config.name}': unexpected inference {kind} '{spec.name}', allowed {kind}s are: "
                f"{', '.join(by_name)}"
            )
        if actual.datatype != spec.datatype:
            raise ConfigError(
                f"config of '{config.name}': {kind} '{spec.name}' is {spec.datatype}, "
                f"the model file says {actual.datatype}"
            )
        whole = config.input_shape(spec)
        fits = len(whole) == len(actual.dims) and all(
            a == -1 or s in (-1, a) for s, a in zip(whole, actual.dims, strict=True)
        )
        if not fits:
            batch = (
                "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making"
            )
            shape = f"{batch} complete shape {_listed(whole)}" if config.batches else f"shape {_listed(whole)}"
            raise ConfigError(
                f"model '{config.name}', tensor '{spec.name}': the model expects {len(actual.dims)} dimensions (shape "
                f"{_listed(actual.dims)}) but the model configuration specifies {len(whole)} dimensions ({shape})"
            )


def _listed(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
