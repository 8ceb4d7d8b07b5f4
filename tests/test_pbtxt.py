"""`config.pbtxt` and the protocol's config JSON."""

import json
from dataclasses import replace

import pytest

from efserve.errors import ConfigError
from efserve.model_config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    VersionPolicy,
    WarmupInput,
    WarmupSample,
)
from efserve.pbtxt import config_json, config_message, parse_config, parse_config_json
from efserve.tensors import TensorSpec

FULL = """
name: "m"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1, -1 ] }
output { name: "y" data_type: TYPE_STRING dims: [ 10 ] label_filename: "labels.txt" }
instance_group [ { count: 2 kind: KIND_CPU }, { } ]
version_policy { specific { versions: [ 1, 3 ] } }
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 100
  default_queue_policy {
    max_queue_size: 3 timeout_action: DELAY default_timeout_microseconds: 7 allow_timeout_override: true
  }
}
parameters { key: "a" value { string_value: "b" } }
"""
PARSED = ModelConfig(
    name="m",
    engine="onnx",
    max_batch_size=8,
    inputs=(TensorSpec("x", "FP32", (1, -1)),),
    outputs=(TensorSpec("y", "BYTES", (10,)),),
    dynamic_batching=DynamicBatching((4, 8), 100, QueuePolicy(3, 7, "DELAY", True)),
    instance_groups=(InstanceGroup("m_0", "CPU", 2), InstanceGroup("m_1")),
    version_policy=VersionPolicy(latest=0, specific=(1, 3)),
    label_filenames={"y": "labels.txt"},
    parameters={"a": "b"},
)


def test_hints_for_the_backends_of_triton_are_kept_as_they_are() -> None:
    accelerator = {"name": "tensorrt", "parameters": {"a": "b"}}
    hints = 'gpu_execution_accelerator { name: "tensorrt" parameters { key: "a" value: "b" } }'
    text = f'backend: "onnxruntime" optimization {{ execution_accelerators {{ {hints} }} eager_batching: true }}'
    config = parse_config(text, "m")
    printed = config_json(config)
    assert printed["optimization"]["execution_accelerators"]["gpu_execution_accelerator"] == [accelerator]
    assert printed["optimization"]["eager_batching"] is True
    assert parse_config_json(json.dumps(printed), "m").optimization == config.optimization
    assert "optimization" not in config_json(parse_config('backend: "onnxruntime"', "m"))


def test_every_supported_field_is_read() -> None:
    assert parse_config(FULL, "m") == PARSED


def test_what_is_read_is_what_the_config_call_answers() -> None:
    assert parse_config(str(config_message(PARSED)), "m") == PARSED


PRIORITIES = DynamicBatching(
    preferred_batch_sizes=(2,),
    priority_levels=3,
    default_priority_level=2,
    priority_policies={1: QueuePolicy(max_queue_size=5), 3: QueuePolicy(default_timeout_us=9, timeout_action="DELAY")},
)


def test_priorities_are_read_and_told() -> None:
    config = replace(PARSED, dynamic_batching=PRIORITIES)
    assert parse_config(str(config_message(config)), "m") == config
    printed = config_json(config)
    assert printed["dynamic_batching"]["priority_levels"] == 3
    assert printed["dynamic_batching"]["priority_queue_policy"]["3"]["default_timeout_microseconds"] == 9
    assert parse_config_json(json.dumps(printed), "m") == replace(config, name="m")


def test_optional_inputs_are_read_and_told() -> None:
    config = replace(PARSED, optional_inputs=("x",))
    assert parse_config(str(config_message(config)), "m") == config
    assert config_json(config)["input"][0]["optional"] is True


def test_image_formats_are_read_and_told() -> None:
    text = 'input { name: "x" data_type: TYPE_FP32 dims: [3, 8, 8] format: FORMAT_NCHW } model_transaction_policy { }'
    config = parse_config(text, "m")
    assert config_json(config)["input"][0]["format"] == "FORMAT_NCHW"
    assert parse_config_json(json.dumps(config_json(config)), "m").image_formats == {"x": "FORMAT_NCHW"}


def test_what_a_config_leaves_open_is_told_as_triton_does() -> None:
    open_one = replace(PARSED, max_batch_size=6, dynamic_batching=DynamicBatching(), instance_groups=())
    printed = config_json(open_one)
    assert printed["dynamic_batching"]["preferred_batch_size"] == [6]
    assert [group["name"] for group in printed["instance_group"]] == ["m"]


def test_warm_up_and_cache_are_read_and_told() -> None:
    inputs = (
        WarmupInput("a", "FP32", (2, 3)),
        WarmupInput("b", "BYTES", (1,), file="words"),
        WarmupInput("c", "INT64", (1,), is_random=True),
    )
    config = replace(PARSED, warmup=(WarmupSample("first", inputs, rows=2, count=3),), response_cache=True)
    assert parse_config(str(config_message(config)), "m") == config
    assert config_json(config)["response_cache"] == {"enable": True}


def test_an_empty_config_says_nothing() -> None:
    assert parse_config("", "m") == ModelConfig("m")


def test_json_has_its_fields_in_triton_s_order() -> None:
    text = """max_batch_size: 1
        dynamic_batching { priority_levels: 18446744073709551615 default_priority_level: 4294967295
        priority_queue_policy { key: 4294967296 value { max_queue_size: 10 allow_timeout_override: true
            default_timeout_microseconds: 18446744073709551615 } } }"""
    printed = json.dumps(config_json(parse_config(text, "m")), separators=(",", ":"))
    policy = (
        '{"timeout_action":"REJECT","default_timeout_microseconds":18446744073709551615,"allow_timeout_override":true,'
        '"max_queue_size":10}'
    )
    assert f'"priority_queue_policy":{{"4294967296":{policy}}}' in printed
    assert '"priority_levels":18446744073709551615,"default_priority_level":4294967295' in printed
    assert printed.startswith('{"name":"m","platform":"","backend":"","runtime":"","version_policy":')


def test_json_has_proto_names_unset_scalars_and_numbers() -> None:
    printed = config_json(PARSED)
    assert printed["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert printed["input"][0]["dims"] == [1, -1]
    assert printed["input"][0]["allow_ragged_batch"] is False
    assert printed["platform"] == "onnxruntime_onnx"
    assert printed["instance_group"][0]["kind"] == "KIND_CPU"
    assert printed["version_policy"] == {"specific": {"versions": [1, 3]}}
    assert "sequence_batching" not in printed
    assert "dynamic_batching" not in config_json(ModelConfig("m"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sequence_batching { }", "'sequence_batching' is not supported"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
            "'input.allow_ragged_batch' is not supported",
        ),
        ("ensemble_scheduling { }", "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble"),
        ('platform: "ensemble" ensemble_scheduling { }', "'ensemble_scheduling' is not supported"),
        ('default_model_filename: "../x.onnx"', "file '../x.onnx' is outside the model's folder"),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "/etc/passwd" }',
            "file '/etc/passwd' is outside the model's folder",
        ),
        (
            'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 } } }',
            "needs one of zero_data, random_data and input_data_file",
        ),
        (
            'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true } } }',
            "expected fixed ones",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
            r"default priority level must be in range \[1, 2\] for m, not 0",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 2 "
            "priority_queue_policy { key: 3 value { } } }",
            r"priority queue policy must have priority level in range \[1, 2\] for m, not 3",
        ),
        ("nonsense: 1", 'no field named "nonsense"'),
        ("max_batch_size: [", "line:column 1:"),
        ('name: "other"', "name is 'other', but the model's folder is 'm'"),
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m, not -1"),
        ('backend: "tensorflow"', "backend 'tensorflow' is not known"),
        ('backend: "python" platform: "onnxruntime_onnx"', "are two engines"),
        ("instance_group { kind: KIND_MODEL }", "KIND_MODEL is not supported; use KIND_AUTO, KIND_CPU or KIND_GPU"),
        (
            "instance_group { kind: KIND_CPU gpus: [0] }",
            "m_0 of model m has kind KIND_CPU but specifies one or more GPU",
        ),
        ("instance_group { gpus: [-1] }", "group m_0 of model m specifies invalid or unsupported gpu id -1. GPUs with"),
        ("instance_group { gpus: [1, 1] }", "lists a GPU twice"),
        ('parameters { key: "share_pct" value { string_value: "half" } }', "share_pct is 'half', expected a number"),
        ('parameters { key: "share_pct" value { string_value: "0" } }', "share_pct is '0', expected a number above 0"),
        ('parameters { key: "share_pct" value { string_value: "101" } }', "share_pct is 101, expected at most 100"),
        ('parameters { key: "g.share_pct" value { string_value: "5" } }', "of no instance_group; it has none"),
        ("instance_group { count: -2 }", "count is -2"),
        ('input { name: "x" dims: 1 }', "model input 'x' must specify 'data_type'"),
        ("input { data_type: TYPE_FP32 }", "has no name"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: -2 }',
            r"model input 'x' dimension must be .*; its dims are \[-2\]",
        ),
        ('output { name: "y" data_type: TYPE_FP32 dims: [3, 0] }', r"model output 'y' dimension must be integer >= 1"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 9 format: FORMAT_NCHW }',
            r"NHWC/NCHW require 3 dims; 'x' has \[9\]",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }",
            "preferred size must be <= max batch size for m",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }",
            "preferred size must be positive for m, not 0",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY "
            "default_timeout_microseconds: 9 } }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
        ),
        ("model_transaction_policy { decoupled: true }", "'model_transaction_policy.decoupled' is not supported"),
        ("version_policy { specific { } }", "lists no versions"),
        ('input { name: "x" data_type: 77 dims: 1 }', "field 'input.data_type' is 77, .* TYPE_FP32"),
        ("instance_group { kind: 77 }", "field 'instance_group.kind' is 77, .* KIND_CPU"),
        (
            "dynamic_batching { default_queue_policy { timeout_action: 7 } }",
            "field 'dynamic_batching.default_queue_policy.timeout_action' is 7, .* REJECT, DELAY",
        ),
        ("output { name: 'y' data_type: TYPE_FP32 } " * 2, "output 'y' is listed twice"),
    ],
)
def test_one_clear_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_config(text, "m")
    assert "config.pbtxt of 'm'" in str(caught.value)
    assert "\n" not in str(caught.value)


GROUPS = """
instance_group [
  { name: "host" kind: KIND_CPU count: 2 },
  { kind: KIND_GPU gpus: [ 1, 0 ] },
  { gpus: 2 }
]
parameters { key: "share_pct" value { string_value: "25" } }
parameters { key: "host.share_pct" value { string_value: "12.5" } }
parameters { key: "host.memory_limit_mb" value { string_value: "512" } }
"""


def test_instance_groups_have_their_shares_by_parameters() -> None:
    config = parse_config(GROUPS, "m")
    assert config.instance_groups == (
        InstanceGroup("host", "CPU", 2, (), 12.5, 512 * 2**20),
        InstanceGroup("m_1", "GPU", 1, (1, 0), 25.0),
        InstanceGroup("m_2", "GPU", 1, (2,), 25.0),
    )
    assert parse_config(str(config_message(config)), "m") == config


@pytest.mark.parametrize("value", ["0.5", "2e9", "1e300"])
def test_a_memory_limit_that_no_process_can_have_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"memory_limit_mb is .*, expected megabytes"):
        parse_config(f'parameters {{ key: "memory_limit_mb" value {{ string_value: "{value}" }} }}', "m")


def test_a_share_alone_makes_a_group() -> None:
    config = parse_config('parameters { key: "share_pct" value { string_value: "25" } }', "m")
    assert config.instance_groups == (InstanceGroup("m_0", share_pct=25.0),)
