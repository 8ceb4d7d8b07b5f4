"""Triton's ModelConfig as text and as JSON: reads `config.pbtxt`, writes what the protocol's config call answers.

Every field that efserve does not honour is an error that names it; nothing is ignored silently. Hints on how to be fast
are kept, to be told as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from efserve.batching_fields import read_batching, write_batching
from efserve.errors import ConfigError
from efserve.instance_groups import read_groups, write_groups
from efserve.model_config import (
    ModelConfig,
    VersionPolicy,
    WarmupInput,
    WarmupSample,
)
from efserve.reshapes import reshape_problem
from efserve.tensors import Shape, TensorSpec
from efserve.triton_messages import model_config_pb2 as pb

# What a config may say; {} ends a branch: a scalar, or a message of which every field is honoured.
_Fields = Mapping[str, "_Fields"]
_QUEUE_POLICY: _Fields = {
    "timeout_action": {},
    "default_timeout_microseconds": {},
    "allow_timeout_override": {},
    "max_queue_size": {},
}
_SUPPORTED: _Fields = {
    "name": {},
    "platform": {},
    "backend": {},
    "max_batch_size": {},
    "input": {"name": {}, "data_type": {}, "dims": {}, "format": {}, "reshape": {}, "optional": {}},
    "output": {"name": {}, "data_type": {}, "dims": {}, "reshape": {}, "label_filename": {}},
    "version_policy": {},
    "instance_group": {"name": {}, "kind": {}, "count": {}, "gpus": {}},
    "dynamic_batching": {
        "preferred_batch_size": {},
        "max_queue_delay_microseconds": {},
        "default_queue_policy": _QUEUE_POLICY,
        "preserve_ordering": {},
        "priority_levels": {},
        "default_priority_level": {},
        "priority_queue_policy": {},
    },
    "default_model_filename": {},
    "optimization": {},
    "parameters": {},
    "model_warmup": {},
    "response_cache": {},
    "model_transaction_policy": {"": {}},  # that it is not decoupled may be said
}
# (platform, backend) as Triton names them
_TRITON_NAMES = {
    "onnx": ("onnxruntime_onnx", "onnxruntime"),
    "torchscript": ("pytorch_libtorch", "pytorch"),
    "openvino": ("", "openvino"),
    "tensorrt": ("tensorrt_plan", "tensorrt"),
    "python": ("", "python"),
}
# What Triton's backends call the file of a version where the config names none.
_FILENAMES = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "openvino": "model.xml",
    "python": "model.py",
}
_ENGINES = {name: engine for engine, names in _TRITON_NAMES.items() for name in names if name}


def backend_name(engine: str) -> str:
    """What Triton calls the backend of an engine."""
    return _TRITON_NAMES[engine][1]


def read_config(path: Path, name: str) -> ModelConfig:
    """The config in the file at `path` of the model whose folder is called `name`.

    Raises ConfigError for text that does not parse, fields that efserve does not support, or values out of range.
    """
    try:
        return parse_config(path.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"config.pbtxt of '{name}' cannot be read: {exc}") from exc


def parse_config(text: str, name: str) -> ModelConfig:
    """The config that `text` (protobuf text format) gives for the model `name`; errors as in `read_config`."""
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as exc:
        raise ConfigError(f"config.pbtxt of '{name}', line:column {exc}") from exc
    return _from_message(message, name)


def parse_config_json(text: str, name: str) -> ModelConfig:
    """The config that `text`, JSON as the config call answers it, gives for the model `name`; errors likewise."""
    message = pb.ModelConfig()
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as exc:
        raise ConfigError(f"config given for '{name}': {exc}") from exc
    return _from_message(message, name)


def _from_message(message: Any, name: str) -> ModelConfig:
    if message.HasField("ensemble_scheduling") and message.platform != "ensemble":
        problem = f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble"
        raise ConfigError(f"config.pbtxt of '{name}': {problem}")
    for trouble in _unsupported(message, _SUPPORTED):
        raise ConfigError(f"config.pbtxt of '{name}': {trouble}")
    if message.name not in ("", name):
        raise ConfigError(f"config.pbtxt of '{name}': name is '{message.name}', but the model's folder is '{name}'")
    if message.max_batch_size < 0:
        raise ConfigError(
            f"config.pbtxt of '{name}': 'max_batch_size' must be non-negative value for {name}, not "
            f"{message.max_batch_size}"
        )
    for filename in (message.default_model_filename, *(tensor.label_filename for tensor in message.output)):
        if PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts:
            raise ConfigError(f"config.pbtxt of '{name}': file '{filename}' is outside the model's folder")
    engine = _engine(message, name)
    return ModelConfig(
        name=name,
        engine=engine,
        max_batch_size=message.max_batch_size,
        inputs=_specs("input", message.input, name),
        outputs=_specs("output", message.output, name),
        dynamic_batching=read_batching(message, name),
        instance_groups=read_groups(message, name),
        version_policy=_version_policy(message, name),
        default_model_filename=_filename(message, engine),
        label_filenames={tensor.name: tensor.label_filename for tensor in message.output if tensor.label_filename},
        parameters={key: value.string_value for key, value in message.parameters.items()},
        warmup=tuple(_warmup(sample, name) for sample in message.model_warmup),
        response_cache=message.response_cache.enable,
        optional_inputs=tuple(tensor.name for tensor in message.input if tensor.optional),
        input_reshapes=_reshapes("input", message.input, message, name),
        output_reshapes=_reshapes("output", message.output, message, name),
        optimization=text_format.MessageToString(message.optimization, as_one_line=True).strip(),
        image_formats=_image_formats(message, name),
    )


def config_json(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig as the protocol's JSON: proto field names, unset scalars printed, 64-bit integers as numbers."""
    return message_json(config_message(config))


def message_json(message: Any) -> dict[str, Any]:
    """A ModelConfig message as the protocol's JSON."""
    printed = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _as_triton(message.DESCRIPTOR, printed)


def config_message(config: ModelConfig) -> Any:
    """ModelConfig as the protobuf message that Triton's clients know."""
    platform, backend = _TRITON_NAMES.get(config.engine, ("", config.engine))
    message = pb.ModelConfig(
        name=config.name,
        platform=platform,
        backend=backend,
        max_batch_size=config.max_batch_size,
        default_model_filename=config.default_model_filename or _FILENAMES.get(config.engine, ""),
    )
    for spec in config.inputs:
        optional = spec.name in config.optional_inputs
        target = message.input.add(name=spec.name, data_type=_data_type(spec.datatype), dims=spec.dims)
        target.optional = optional
        _write_reshape(target, config.input_reshapes)
        target.format = pb.ModelInput.Format.Value(config.image_formats.get(spec.name, "FORMAT_NONE"))
    for spec in config.outputs:
        labels = config.label_filenames.get(spec.name, "")
        target = message.output.add(name=spec.name, data_type=_data_type(spec.datatype), dims=spec.dims)
        target.label_filename = labels
        _write_reshape(target, config.output_reshapes)
    if config.version_policy.specific:
        message.version_policy.specific.versions.extend(config.version_policy.specific)
    elif config.version_policy.latest:
        message.version_policy.latest.num_versions = config.version_policy.latest
    else:
        message.version_policy.all.SetInParent()
    write_groups(message, config)
    write_batching(message, config)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    for sample in config.warmup:
        _write_warmup(message.model_warmup.add(name=sample.name, batch_size=sample.rows, count=sample.count), sample)
    if config.response_cache:
        message.response_cache.enable = True
    if config.optimization:
        text_format.Parse(config.optimization, message.optimization)
    return message


def _write_reshape(target: Any, reshapes: Mapping[str, Shape]) -> None:
    if (shape := reshapes.get(target.name)) is not None:
        target.reshape.SetInParent()
        target.reshape.shape.extend(shape)


def _write_warmup(message: Any, sample: WarmupSample) -> None:
    for given in sample.inputs:
        target = message.inputs[given.name]
        target.data_type = _data_type(given.datatype)
        target.dims.extend(given.dims)
        if given.file:
            target.input_data_file = given.file
        elif given.is_random:
            target.random_data = True
        else:
            target.zero_data = True


def _unsupported(message: Message, supported: _Fields, prefix: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.name not in supported:
            yield f"field '{path}' is not supported by efserve; remove it"
        elif field.enum_type is not None and value not in field.enum_type.values_by_number:
            known = ", ".join(field.enum_type.values_by_name)
            yield f"field '{path}' is {value}, which has no meaning; expected one of {known}"
        elif inner := supported[field.name]:
            for part in value if _is_repeated(field) else (value,):
                yield from _unsupported(part, inner, f"{path}.")


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _engine(message: Any, name: str) -> str:
    engines = set()
    for kind in ("platform", "backend"):
        if value := getattr(message, kind):
            if value not in _ENGINES:
                known = ", ".join(sorted(_ENGINES))
                raise ConfigError(f"config.pbtxt of '{name}': {kind} '{value}' is not known; efserve has {known}")
            engines.add(_ENGINES[value])
    if len(engines) > 1:
        raise ConfigError(
            f"config.pbtxt of '{name}': platform '{message.platform}' and backend '{message.backend}' are two engines"
        )
    if not engines and PurePosixPath(message.default_model_filename).suffix == ".plan":
        return "tensorrt"
    return engines.pop() if engines else ""


def _filename(message: Any, engine: str) -> str:
    """The file that the config names, where it is not the one that is meant anyway."""
    if not message.default_model_filename and message.platform == "tensorrt_plan":
        return "model.plan"  # not that of another kind which the engine takes as well
    return "" if message.default_model_filename == _FILENAMES.get(engine) else message.default_model_filename


def _specs(kind: str, tensors: Iterable[Any], model: str) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    for tensor in tensors:
        if tensor.name in specs:
            raise ConfigError(f"config.pbtxt of '{model}': {kind} '{tensor.name}' is listed twice")
        specs[tensor.name] = _spec(f"model {kind}", tensor, model)
    return tuple(specs.values())


def _spec(kind: str, tensor: Any, model: str) -> TensorSpec:
    if not tensor.name:
        raise ConfigError(f"config.pbtxt of '{model}': an input or output has no name")
    if tensor.data_type == pb.TYPE_INVALID:
        raise ConfigError(f"config.pbtxt of '{model}': {kind} '{tensor.name}' must specify 'data_type'")
    if any(dim < -1 or dim == 0 for dim in tensor.dims):
        raise ConfigError(
            f"config.pbtxt of '{model}': {kind} '{tensor.name}' dimension must be integer >= 1, or -1 to indicate a "
            f"variable-size dimension for {model}; its dims are {list(tensor.dims)}"
        )
    datatype = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorSpec(tensor.name, "BYTES" if datatype == "STRING" else datatype, tuple(tensor.dims))


def _reshapes(kind: str, tensors: Iterable[Any], message: Any, model: str) -> dict[str, Shape]:
    reshapes = {}
    for tensor in tensors:
        if tensor.HasField("reshape"):
            if problem := reshape_problem(tensor.dims, tensor.reshape.shape, batches=message.max_batch_size > 0):
                raise ConfigError(f"config.pbtxt of '{model}': model {kind} '{tensor.name}' {problem} for {model}")
            reshapes[tensor.name] = tuple(tensor.reshape.shape)
    return reshapes


def _image_formats(message: Any, model: str) -> dict[str, str]:
    given = {tensor.name: tensor for tensor in message.input if tensor.format != pb.ModelInput.FORMAT_NONE}
    for name, tensor in given.items():
        if len(tensor.dims) != 3:
            raise ConfigError(
                f"config.pbtxt of '{model}': model input NHWC/NCHW require 3 dims; '{name}' has {list(tensor.dims)}"
            )
    return {name: pb.ModelInput.Format.Name(tensor.format) for name, tensor in given.items()}


def _warmup(sample: Any, model: str) -> WarmupSample:
    where = f"config.pbtxt of '{model}': model_warmup '{sample.name}'"
    inputs = []
    for name, given in sorted(sample.inputs.items()):
        kind = given.WhichOneof("input_data_type")
        if kind is None:
            raise ConfigError(f"{where}: input '{name}' needs one of zero_data, random_data and input_data_file")
        if any(dim < 1 for dim in given.dims):
            raise ConfigError(f"{where}: input '{name}' has dims {list(given.dims)}, expected fixed ones")
        file = given.input_data_file
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ConfigError(f"{where}: file '{file}' is outside the model's folder")
        spec = _spec(
            "model_warmup input", SimpleNamespace(name=name, data_type=given.data_type, dims=given.dims), model
        )
        inputs.append(WarmupInput(name, spec.datatype, spec.dims, file, kind == "random_data"))
    return WarmupSample(sample.name, tuple(inputs), max(1, sample.batch_size), max(1, sample.count))


def _data_type(datatype: str) -> int:
    return int(pb.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"))


def _version_policy(message: Any, name: str) -> VersionPolicy:
    policy = message.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy(latest=0)
        case "specific":
            if not policy.specific.versions:
                raise ConfigError(f"config.pbtxt of '{name}': version_policy specific lists no versions")
            return VersionPolicy(latest=0, specific=tuple(policy.specific.versions))
        case "latest":
            return VersionPolicy(latest=max(1, policy.latest.num_versions))
        case _:
            return VersionPolicy()


def _as_triton(descriptor: Any, printed: dict[str, Any]) -> dict[str, Any]:
    """What json_format prints of a message, with its fields in their order, and 64-bit integers as numbers."""
    return {field.name: _value(field, printed[field.name]) for field in descriptor.fields if field.name in printed}


def _value(field: Any, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {key: _value(kind.fields_by_name["value"], part) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(field, part) for part in value]
    if kind is not None:
        return _as_triton(kind, value)
    return int(value) if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else value
