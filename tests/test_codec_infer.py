"""Inference requests: what a body means for a model, the protocol's literal errors, and what is cached."""

import json
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.codec.v2_infer import MAX_CACHED_TEMPLATES, decode
from efserve.codec.v2_json import RequestHead, parse_as
from efserve.errors import EfserveError, InvalidRequest
from efserve.model_config import ModelConfig
from efserve.tensors import NUMPY_DTYPES, TensorSpec, encode_bytes
from fakes import FakeModel, identity_config
from infer_requests import body_of, error_of, one_input, two_inputs

NUMBERS = sorted(set(NUMPY_DTYPES) - {"BYTES", "BF16", "FP16"})


def test_a_binary_request_is_sliced_without_a_copy() -> None:
    model = FakeModel(identity_config())
    tail = np.arange(16, dtype=np.float32).tobytes()
    body, length = body_of({"inputs": [one_input()]}, tail)
    template, tensors, id_json = decode(model, body, length)
    assert (template.rows, template.shapes, template.shape_key) == (1, ((1, 16),), ((16,),))
    assert (bytes(tensors[0]), id_json, template.timeout_us) == (tail, b"", 0)
    assert isinstance(tensors[0], memoryview)
    assert tensors[0].obj is body.obj


def test_a_repeated_head_is_worked_out_once() -> None:
    model = FakeModel(identity_config())
    body, length = body_of({"inputs": [one_input()]}, bytes(64))
    first = decode(model, body, length)[0]
    assert decode(model, body, length)[0] is first
    with pytest.raises(InvalidRequest, match=r"holds 63 bytes .* for model 'identity', its inputs need 64"):
        decode(model, body[:-1], length)
    with pytest.raises(InvalidRequest, match="holds 65 bytes"):
        decode(model, memoryview(bytes(body) + b"!"), length)


def test_ids_that_count_up_share_one_template() -> None:
    model = FakeModel(identity_config())
    seen = set()
    for number in range(1000):
        text = b'{"id":"%d","inputs":%b}' % (number, json.dumps([one_input()]).encode())
        template, _, id_json = decode(model, memoryview(text + bytes(64)), len(text))
        assert id_json == b"%d" % number
        seen.add(id(template))
    assert len(seen) == 1
    assert len(model.templates) == 1


def test_a_request_without_an_id_shares_the_template_too() -> None:
    model = FakeModel(identity_config())
    text = json.dumps({"inputs": [one_input()]}, separators=(",", ":")).encode()
    with_id = b'{"id":"a",' + text[1:]
    first, second = (decode(model, memoryview(t + bytes(64)), len(t)) for t in (with_id, text))
    assert (first[2], second[2], first[0] is second[0]) == (b"a", b"", True)
    with pytest.raises(InvalidRequest, match="failed to parse"):
        decode(model, memoryview(text[1:] + bytes(64)), len(text) - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"id":"a","inputs":INPUTS,"id":"b"}', b"b"),  # the last of equal keys counts
        ('{"inputs":INPUTS,"id":"late"}', b"late"),
        ('{"id":7,"inputs":INPUTS}', b"7"),
        ('{"id":"quote\\"d","inputs":INPUTS}', b'quote\\"d'),
        ('{"id":"","inputs":INPUTS}', b""),
    ],
)
def test_ids_wherever_they_stand(text: str, expected: bytes) -> None:
    model = FakeModel(identity_config())
    raw = text.replace("INPUTS", json.dumps([one_input()])).encode()
    without_first = b"{" + raw.removeprefix(b'{"id":"a",').removeprefix(b"{")
    decode(model, memoryview(without_first + bytes(64)), len(without_first))
    for _ in range(2):  # from the parser, then from the cache
        assert decode(model, memoryview(raw + bytes(64)), len(raw))[2] == expected


def test_the_template_cache_is_bounded() -> None:
    model = FakeModel(identity_config())
    for number in range(2 * MAX_CACHED_TEMPLATES + 10):
        decode(model, *body_of({"inputs": [one_input()], "parameters": {"mine": number}}, bytes(64)))
        assert len(model.templates) <= MAX_CACHED_TEMPLATES
    decode(model, *body_of({"inputs": [one_input()], "parameters": {"mine": "x" * 2000}}, bytes(64)))
    assert max(map(len, model.templates)) < 1100
    model.templates.clear()
    decode(model, *body_of({"inputs": [one_input(parameters={}, data=[0.0] * 16)]}))
    assert not model.templates


def test_tensors_come_in_the_models_order_and_may_mix_json_and_binary() -> None:
    model = FakeModel(two_inputs())
    strings = encode_bytes([b"x", b"yz"])
    head = {
        "inputs": [
            {"name": "B", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(strings)}},
            {"name": "A", "shape": [1, 2], "datatype": "INT32", "data": [[-1, 2]]},
        ],
        "parameters": {"timeout": 1500, "binary_data_output": True},
    }
    template, tensors, _ = decode(model, *body_of(head, strings))
    assert [bytes(tensor) for tensor in tensors] == [np.array([-1, 2], np.int32).tobytes(), strings]
    assert template.timeout_us == 1500
    assert [plan.binary for plan in template.outputs] == [True, True]


def test_outputs_as_asked_for() -> None:
    model = FakeModel(two_inputs(), labels={"X": ("cat", "dog")})
    inputs = [
        {"name": "A", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]},
        {"name": "B", "shape": [1, 1], "datatype": "BYTES", "data": ["é"]},
    ]
    asked = [{"name": "Y", "parameters": {"binary_data": True}}, {"name": "X", "parameters": {"classification": 2}}]
    template, tensors, _ = decode(model, *body_of({"inputs": inputs, "outputs": asked}))
    assert bytes(tensors[1]) == encode_bytes(["é".encode()])
    assert [(plan.index, plan.binary, plan.classes) for plan in template.outputs] == [(1, True, 0), (0, False, 2)]
    assert template.outputs[1].labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"inputs": [one_input(shape=[9, 16])]}, "inference request batch-size must be <= 8 for 'identity'"),
        ({"inputs": [one_input(shape=[0, 16])]}, "inference request batch-size must be >= 1 for 'identity'"),
        (
            {"inputs": [one_input(shape=[1, 15])]},
            "unexpected shape for input 'input' for model 'identity'. Expected [-1,16], got [1,15]",
        ),
        ({"inputs": [one_input(shape=[1])]}, "Expected [-1,16], got [1]"),
        (
            {"inputs": [one_input(shape=[])]},
            "'input' has no shape but model requires batch dimension for 'identity'",
        ),
        (
            {"inputs": [one_input(datatype="INT32")]},
            "inference input 'input' data-type is 'INT32', but model 'identity' expects 'FP32'",
        ),
        (
            {"inputs": [one_input(parameters={"binary_data_size": 60})]},
            "input byte size mismatch for input 'input' for model 'identity'. Expected 64, got 60",
        ),
        (
            {"inputs": []},
            "expected 1 inputs but got 0 inputs for model 'identity'. Got input(s) [], but missing required input(s) "
            "['input']. Please provide all required input(s).",
        ),
        ({"inputs": [one_input(name="more")]}, "unexpected inference input 'more' for model 'identity'"),
        (
            {"inputs": [one_input(), one_input(name="more")]},
            "expected 1 inputs but got 2 inputs for model 'identity'. Got input(s) ['input','more']",
        ),
        ({"inputs": [one_input(), one_input()]}, "input 'input' already exists in request"),
        ({"inputs": [one_input(data=[1])]}, "But set 'data' 'binary_data_size'"),
        ({"inputs": [one_input(parameters={})]}, "'shared_memory_region' in 'parameters'. But no field is set"),
        ({"inputs": [one_input(parameters={"shared_memory_region": "r"})]}, "Expected 64, got 0"),
        (
            {"inputs": [one_input()], "outputs": [{"name": "no"}]},
            "unexpected inference output 'no' for model",
        ),
        ({"inputs": [one_input()], "outputs": [{"name": "output"}] * 2}, "output 'output' already exists in request"),
        (
            {"inputs": [one_input()], "parameters": {"triton_enable_empty_final_response": True}},
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        ),
        (
            {"inputs": [one_input()], "parameters": {"timeout": "x"}},
            "Unable to parse 'timeout': attempt to access JSON",
        ),
        ({"inputs": [one_input()], "parameters": {"priority": -1}}, "JSON non-unsigned-integer as unsigned-integer"),
        ({"inputs": [one_input()], "parameters": {"priority": 2**64}}, "Unable to parse 'priority'"),
        ({"inputs": [one_input()], "parameters": {"timeout": True}}, "Unable to parse 'timeout'"),
        ({"inputs": [one_input()], "parameters": {"sequence_start": 1}}, "JSON non-boolean as boolean"),
        ({"inputs": [one_input()], "parameters": {"sequence_id": 1.5}}, "JSON non-string as string"),
        ({"inputs": [one_input()], "parameters": {"mine": [1]}}, "parameter 'mine' has invalid type. It should be"),
        ({"inputs": [one_input(parameters={"binary_data_size": -1})]}, "at `$.inputs[0].parameters.binary_data_size`"),
        ({"inputs": [one_input(shape=["1"])]}, "Expected `int`, got `str` - at `$.inputs[0].shape[0]`"),
        ({}, "Object missing required field `inputs`"),
        ({"inputs": [{"name": "input"}]}, "Object missing required field `shape` - at `$.inputs[0]`"),
    ],
)
def test_what_does_not_fit_is_told(head: dict[str, Any], message: str) -> None:
    assert message in error_of(FakeModel(identity_config()), head, bytes(64))


def test_several_inputs_must_agree() -> None:
    model = FakeModel(two_inputs())
    first = {"name": "A", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4]}
    second = {"name": "B", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    assert error_of(model, {"inputs": [first, second]}) == "input 'B' batch size does not match other inputs for 'pair'"
    assert error_of(model, {"inputs": [first]}) == (
        "expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['A'], but missing required input(s) ['B']. "
        "Please provide all required input(s)."
    )


@pytest.mark.parametrize("sequence", [7, "seven"])
def test_parameters_of_sequences_and_of_models_mean_nothing(sequence: int | str) -> None:
    parameters = {"sequence_id": sequence, "sequence_start": True, "sequence_end": True, "mine": 1.5, "headers": "x"}
    template, _, _ = decode(
        FakeModel(identity_config()), *body_of({"inputs": [one_input()], "parameters": parameters}, bytes(64))
    )
    assert (template.rows, template.priority, template.timeout_us) == (1, 0, 0)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_outputs_have_no_json(datatype: str) -> None:
    model = FakeModel(identity_config(datatype=datatype))
    head = {"inputs": [one_input(datatype=datatype, parameters={"binary_data_size": 32})]}
    assert "ask for it with binary_data true" in error_of(model, head, bytes(32))
    decode(model, *body_of(head | {"parameters": {"binary_data_output": True}}, bytes(32)))


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"\x01\0\0\0x", "expected 2 string elements for inference input 'input' for model 'identity', got 1"),
        (b"\x09\0\0\0x" + bytes(5), "needs 3 bytes more than the data holds"),
        (
            encode_bytes([b"x", b"y", b"z"]),
            "unexpected number of string elements 3 for inference input 'input' for model 'identity', expecting 2",
        ),
    ],
)
def test_strings_are_checked_also_when_the_head_is_known(tail: bytes, message: str) -> None:
    model = FakeModel(identity_config(datatype="BYTES", dims=(-1,)))
    item = {"name": "input", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    body, length = body_of({"inputs": [item]}, encode_bytes([b"a", b"b" * (len(tail) - 9)]) if len(tail) > 8 else tail)
    if len(tail) > 8:
        decode(model, body, length)
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        decode(model, memoryview(bytes(body[:length]) + tail), length)


def raw_model(datatype: str, dims: tuple[int, ...], max_batch: int = 8) -> FakeModel:
    spec = TensorSpec("input", datatype, dims)
    return FakeModel(ModelConfig("raw", max_batch_size=max_batch, inputs=(spec,), outputs=(spec,)))


@pytest.mark.parametrize(
    ("model", "size", "shape"),
    [
        (raw_model("FP32", (16,)), 64, (1, 16)),
        (raw_model("FP32", (16,)), 192, (3, 16)),
        (raw_model("FP32", (-1,)), 40, (1, 10)),
        (raw_model("FP32", (2, -1), 0), 40, (2, 5)),
        (raw_model("FP32", (4,), 0), 16, (4,)),
        (raw_model("BYTES", (1,)), 5, (1, 1)),
    ],
)
def test_a_raw_requests_shape_follows_from_its_size(model: FakeModel, size: int, shape: tuple[int, ...]) -> None:
    template, tensors, _ = decode(model, memoryview(b"\x07" * size), 0)
    assert template.shapes == (shape,)
    assert bytes(tensors[0]).endswith(b"\x07" * size)
    assert all(plan.binary for plan in template.outputs)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (raw_model("FP32", (16,)), 63, "has 63 bytes, its shape [-1,16] needs a multiple of 64"),
        (raw_model("FP32", (4,), 0), 12, "has 12 bytes, its shape [4] needs 16"),
        (
            raw_model("FP32", (-1, -1), 0),
            12,
            "The shape of the raw input 'input' can not be deduced because there are more than one variable-sized",
        ),
        (raw_model("FP32", (16,)), 64 * 9, "batch-size must be <= 8"),
        (
            FakeModel(two_inputs()),
            8,
            "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'pair'",
        ),
    ],
)
def test_raw_requests_that_do_not_fit(model: FakeModel, size: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        decode(model, memoryview(bytes(size)), 0)


def test_zero_sized_tensors_are_fine() -> None:
    model = FakeModel(identity_config(dims=(-1,)))
    head = {"inputs": [one_input(shape=[2, 0], parameters={"binary_data_size": 0})]}
    template, tensors, _ = decode(model, *body_of(head))
    assert (template.rows, bytes(tensors[0])) == (2, b"")
    assert bytes(decode(model, *body_of({"inputs": [one_input(shape=[2, 0], parameters={}, data=[])]}))[1][0]) == b""


@pytest.mark.parametrize("dim", [1 << 49, 1 << 63, 10**30])
def test_an_empty_tensor_may_not_have_an_absurd_shape(dim: int) -> None:
    model = FakeModel(identity_config(dims=(-1, -1)))
    head = {"inputs": [one_input(shape=[1, 0, dim], parameters={"binary_data_size": 0})]}
    assert "is beyond all memory" in error_of(model, head)


def test_json_that_is_nested_too_deeply() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    model = FakeModel(identity_config())
    for text in (b'{"inputs":[],"parameters":{"p":%b}}' % deep, b'{"inputs":[{"data":%b}]}' % deep):
        with pytest.raises(InvalidRequest, match="failed to parse the request JSON"):
            decode(model, memoryview(text), None)
    for kind in (dict, RequestHead):
        with pytest.raises(InvalidRequest, match="failed to parse it"):
            parse_as(kind, b'{"inputs":[],"parameters":{"p":%b}}' % deep, "it")


def test_every_truncation_is_an_error() -> None:
    body, length = body_of({"inputs": [one_input()]}, bytes(64))
    for cut in range(len(body)):
        for header_length in (length, None):
            model = FakeModel(identity_config())
            with pytest.raises(InvalidRequest):
                decode(model, body[:cut], header_length)
            assert not model.templates


@given(st.data())
def test_garbled_bodies_never_break_the_decoder(data: st.DataObject) -> None:
    body, length = body_of({"inputs": [one_input()], "parameters": {"timeout": 5}}, bytes(64))
    garbled = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        garbled[data.draw(st.integers(0, len(garbled) - 1))] = data.draw(st.integers(0, 255))
    given_length = data.draw(st.sampled_from([length, None, 0, length - 1, length + 1, 10**6]))
    try:
        template, tensors, _ = decode(FakeModel(identity_config()), memoryview(garbled), given_length)
    except EfserveError as exc:
        msgspec.json.encode(str(exc))
    else:
        assert len(tensors[0]) == 4 * 16 * template.rows


def test_optional_inputs_may_be_left_out() -> None:
    specs = tuple(TensorSpec(name, "FP32", (2,)) for name in ("a", "b", "c"))
    config = ModelConfig("m", "python", 4, specs, specs[:1], optional_inputs=("a", "c"))
    model = FakeModel(config)
    binary = {"binary_data_size": 16}
    head = {"inputs": [{"name": "b", "shape": [2, 2], "datatype": "FP32", "parameters": binary}]}
    for _ in range(2):
        template, tensors, _ = decode(model, *body_of(head, bytes(range(16))))
        assert template.shapes == ((2, -1), (2, 2), (2, -1))
        assert template.rows == 2
        assert [bytes(tensor) for tensor in tensors] == [b"", bytes(range(16)), b""]
    as_json = {"inputs": [{"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} for name in "cb"]}
    other, tensors, _ = decode(model, *body_of(as_json))
    assert other.shape_key != template.shape_key
    assert [len(tensor) for tensor in tensors] == [0, 8, 8]
    assert "expected number of inputs between 1 and 3 but got 1 inputs for model 'm'. Got input(s) ['a']" in error_of(
        model, {"inputs": [{**head["inputs"][0], "name": "a"}]}, bytes(16)
    )
    assert "expected number of inputs between 1 and 3 but got 0 inputs" in error_of(model, {"inputs": []})
