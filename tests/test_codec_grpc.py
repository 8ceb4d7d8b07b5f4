"""gRPC's framing, and inference messages in protobuf: what protobuf itself says, and the checks that HTTP has."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from efserve.codec.grpc import (
    CallFailed,
    MessageReader,
    Status,
    compressed,
    framed,
    message_text,
    status_of,
    timeout_s,
    trailers,
)
from efserve.codec.http2.headers import HeaderDecoder
from efserve.codec.v2_grpc import Scanner, decode, encode, stream_error, streamed
from efserve.errors import EfserveError, InvalidRequest, NotFound, Unavailable, Unsupported
from efserve.inference import Buffer, OutputTensor
from efserve.model_config import ModelConfig
from efserve.tensors import NUMPY_DTYPES, TensorSpec, encode_bytes, to_wire
from fakes import FakeModel, identity_config

# Framing


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50), st.sampled_from(["", "gzip", "deflate"]))
def test_messages_come_out_however_they_are_cut(messages: list[bytes], step: int, encoding: str) -> None:
    stream = b"".join([compressed([message], encoding) for message in messages])
    reader = MessageReader(1000, encoding)
    found = []
    for at in range(0, len(stream), step):
        scratch = bytearray(stream[at : at + step])
        found += [bytes(message) for message in reader.feed(memoryview(scratch))]
        scratch[:] = bytes(len(scratch))  # the receive buffer is used again
    assert found == messages
    assert not reader.partial


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
        (b"\1\0\0\0\1x", Status.INTERNAL),
        (b"\2\0\0\0\1x", Status.INTERNAL),
    ],
)
def test_messages_that_cannot_be_read(data: bytes, status: Status) -> None:
    with pytest.raises(CallFailed) as caught:
        MessageReader(100).feed(data)
    assert caught.value.status is status


def test_a_bomb_does_not_inflate() -> None:
    with pytest.raises(InvalidRequest, match="exceeds the maximum allowed value of 1000 bytes"):
        MessageReader(1000, "gzip").feed(compressed([bytes(10**5)], "gzip"))


def test_damaged_compression() -> None:
    with pytest.raises(InvalidRequest, match="not valid gzip"):
        MessageReader(1000, "gzip").feed(b"\1\0\0\0\4abcd")


@pytest.mark.parametrize(("text", "seconds"), [(b"5S", 5), (b"2H", 7200), (b"3M", 180), (b"1500m", 1.5), (b"7u", 7e-6)])
def test_timeouts(text: bytes, seconds: float) -> None:
    assert timeout_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"5", b"S", b"5s", b"123456789S", b"-1S", b"1.5S"])
def test_bad_timeouts(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="grpc-timeout"):
        timeout_s(text)


@given(st.text(max_size=50))
def test_error_texts_survive(text: str) -> None:
    head = HeaderDecoder(65_536).decode(trailers(Status.INTERNAL, text, alone=False))
    assert not head.fault or text != text.strip()
    assert message_text(head.get(b"grpc-message")) == text


def test_statuses() -> None:
    errors = [InvalidRequest(""), NotFound(""), Unavailable(""), Unsupported(""), EfserveError("")]
    expected = [Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.UNAVAILABLE, Status.UNIMPLEMENTED, Status.INTERNAL]
    assert [status_of(error) for error in errors] == expected


# Requests

TWO = ModelConfig(
    name="two",
    engine="onnx",
    max_batch_size=4,
    inputs=(TensorSpec("a", "FP32", (2,)), TensorSpec("s", "BYTES", (1,))),
    outputs=(TensorSpec("x", "FP32", (2,)), TensorSpec("y", "BYTES", (1,))),
)


def request(rows: int = 1, **fields: Any) -> Any:
    message = pb.ModelInferRequest(model_name="identity", **fields)
    message.inputs.add(name="input", datatype="FP32", shape=[rows, 16])
    message.raw_input_contents.append(bytes(64 * rows))
    return message


def decoded(model: FakeModel, message: Any) -> tuple[Any, tuple[Any, ...]]:
    return decode(model, Scanner().scan(message.SerializeToString()))


def test_a_request_is_remembered_but_for_its_id_and_tensors() -> None:
    model, scanner = FakeModel(identity_config()), Scanner()
    first = scanner.scan(request(id="1").SerializeToString())
    other = request(id="2")
    other.raw_input_contents[0] = b"\1" * 64
    second, third = scanner.scan(other.SerializeToString()), scanner.scan(other.SerializeToString())
    assert (first.id, second.id, third.id) == (b"1", b"2", b"2")
    template, _ = decode(model, first)
    again, tensors = decode(model, second)
    assert again is template
    assert tensors == (b"\1" * 64,) == decode(model, third)[1]
    assert len(model.templates) == 1
    assert decode(model, scanner.scan(request(2).SerializeToString()))[0] is not template


def test_optional_inputs_may_be_left_out() -> None:
    specs = tuple(TensorSpec(name, "FP32", (2,)) for name in ("a", "b", "c"))
    model = FakeModel(ModelConfig("m", "python", 4, specs, specs[:1], optional_inputs=("a", "c")))
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(range(16))])
    message.inputs.add(name="b", datatype="FP32", shape=[2, 2])
    for _ in range(2):
        found, tensors = decoded(model, message)
        assert found.template.shapes == ((2, -1), (2, 2), (2, -1))
        assert [bytes(tensor) for tensor in tensors] == [b"", bytes(range(16)), b""]


def test_priority_and_timeout() -> None:
    message = request()
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 5000
    template = decoded(FakeModel(identity_config()), message)[0].template
    assert (template.priority, template.timeout_us) == (2, 5000)


def test_an_input_is_in_memory_or_in_the_request() -> None:
    message = pb.ModelInferRequest(model_name="identity")
    given_twice = message.inputs.add(name="input", datatype="FP32", shape=[1, 16])
    given_twice.parameters["shared_memory_region"].string_param = "r"
    given_twice.parameters["shared_memory_byte_size"].int64_param = 64
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'r'"):
        decoded(FakeModel(identity_config()), message)
    given_twice.contents.fp32_contents.extend([1.0] * 16)
    with pytest.raises(InvalidRequest, match="either contents or 'shared_memory_region', not both"):
        decoded(FakeModel(identity_config()), message)


names = st.text(max_size=8)
messages = st.builds(
    lambda name, version, id_, inputs, raw, extra: (name, version, id_, inputs, raw, extra),
    names,
    st.sampled_from(["", "1"]),
    st.text(max_size=200),
    st.lists(names, max_size=3),
    st.lists(st.binary(max_size=200), max_size=3),
    st.booleans(),
)


@given(messages)
@settings(max_examples=200)
def test_the_parts_are_what_protobuf_says(parts: tuple[str, str, str, list[str], list[bytes], bool]) -> None:
    name, version, request_id, inputs, raw, extra = parts
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=request_id)
    for item in inputs:
        message.inputs.add(name=item, shape=[1, 2])
    message.raw_input_contents.extend(raw)
    if extra:
        message.parameters["p"].string_param = "v"
        message.outputs.add(name="o")
    scanner = Scanner()
    for _ in range(2):
        found = scanner.scan(message.SerializeToString())
        assert (found.name, found.version, found.id) == (name, version, request_id.encode())
        assert [bytes(data) for data in found.raw] == raw
        rest = pb.ModelInferRequest.FromString(found.head)
        rest.id = request_id
        rest.raw_input_contents.extend(raw)
        assert rest == message


def test_fields_in_another_order() -> None:
    raw, rest = pb.ModelInferRequest(raw_input_contents=[bytes(64)]), request(id="9")
    rest.ClearField("raw_input_contents")
    body = raw.SerializeToString() + rest.SerializeToString()
    found = Scanner().scan(body)
    assert (found.name, found.id, found.raw) == ("identity", b"9", [bytes(64)])
    assert decode(FakeModel(identity_config()), found)[1] == (bytes(64),)


@given(st.binary(max_size=60))
def test_garbage_is_an_invalid_request(data: bytes) -> None:
    model, scanner = FakeModel(identity_config()), Scanner()
    for body in (data, request().SerializeToString()[: len(data)], request().SerializeToString() + data):
        with contextlib.suppress(InvalidRequest, Unsupported):
            decode(model, scanner.scan(body))


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-5, 300]),
    "INT32": ("int_contents", [-5, 1 << 30]),
    "INT64": ("int64_contents", [-(1 << 63), (1 << 63) - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, (1 << 32) - 1]),
    "UINT64": ("uint64_contents", [0, (1 << 64) - 1]),
    "FP32": ("fp32_contents", [1.5, -2.25]),
    "FP64": ("fp64_contents", [0.1, 1e300]),
    "BYTES": ("bytes_contents", [b"", b"two"]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(datatype: str) -> None:
    field, values = TYPED[datatype]
    model = FakeModel(identity_config(datatype=datatype, dims=(2,)))
    message = pb.ModelInferRequest(model_name="identity")
    getattr(message.inputs.add(name="input", datatype=datatype, shape=[1, 2]).contents, field).extend(values)
    _, (data,) = decoded(model, message)
    dtype = np.dtype(object) if datatype == "BYTES" else NUMPY_DTYPES[datatype]
    assert bytes(data) == bytes(to_wire(np.array(values, dtype)))


def test_several_inputs_in_any_order() -> None:
    model = FakeModel(TWO)
    message = pb.ModelInferRequest(model_name="two")
    message.inputs.add(name="s", datatype="BYTES", shape=[1, 1])
    message.inputs.add(name="a", datatype="FP32", shape=[1, 2])
    strings, floats = encode_bytes([b"hello"]), bytes(8)
    message.raw_input_contents.extend([strings, floats])
    for _ in range(2):
        found, tensors = decoded(model, message)
        assert tensors == (floats, strings)
    message.raw_input_contents[0] = b"\x09\0\0\0hello"[:9]
    with pytest.raises(InvalidRequest, match="string element 0"):
        found.tensors(Scanner().scan(message.SerializeToString()).raw)


def test_parameters_of_sequences_mean_nothing() -> None:
    message = request()
    message.parameters["sequence_id"].int64_param = -1  # a large number to Triton
    message.parameters["sequence_start"].bool_param = True
    message.inputs[0].parameters["priority"].string_param = "reserved for whole requests only"
    message.parameters["priority"].uint64_param = 2
    found, _ = decoded(FakeModel(identity_config()), message)
    assert found.template.priority == 2


def _with(**changes: Any) -> Any:
    message = request()
    for key, value in changes.items():
        if key == "raw":
            message.ClearField("raw_input_contents")
            message.raw_input_contents.extend(value)
        elif key == "parameter":
            message.parameters[value].int64_param = changes.get("value", 1)
        elif key == "value":
            continue
        elif key == "output":
            message.outputs.add(name=value)
        elif key == "contents":
            message.inputs[0].contents.fp32_contents.append(value)
        else:
            field = message.inputs[0]
            if key == "shape":
                field.ClearField("shape")
                field.shape.extend(value)
            else:
                setattr(field, key, value)
    return message


WRONG = {
    "shape": (_with(shape=[1, 15]), "unexpected shape for input 'input' for model 'identity'"),
    "rows": (_with(shape=[9, 16]), "inference request batch-size must be <= 8"),
    "datatype": (_with(datatype="INT32"), "data-type is 'INT32', but model 'identity' expects 'FP32'"),
    "name": (_with(name="other"), "unexpected inference input 'other'"),
    "size": (_with(raw=[bytes(60)]), "input byte size mismatch for input 'input'.*Expected 64, got 60"),
    "too many": (_with(raw=[bytes(64), b""]), "expected 1 raw_input_contents"),
    "none": (_with(raw=[]), "Expected 64, got 0"),
    "both": (_with(contents=1.0), "must not be specified when using raw_input_contents"),
    "output": (_with(output="no"), "unexpected inference output 'no'"),
    "reserved": (_with(parameter="triton_x"), "reserved"),
    "flag": (
        _with(parameter="sequence_start"),
        "invalid value type for 'sequence_start' parameter, expected bool_param",
    ),
    "priority": (_with(parameter="priority", value=-1), "invalid value for 'priority', expected value >= 0."),
    "timeout": (_with(parameter="timeout", value=-1), "invalid value for 'timeout', expected value >= 0."),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_have_the_texts_of_http(case: str) -> None:
    message, text = WRONG[case]
    with pytest.raises((InvalidRequest, Unsupported), match=text):
        decoded(FakeModel(identity_config()), message)


@pytest.mark.parametrize(
    ("datatype", "field", "values", "text"),
    [
        ("INT8", "int_contents", [128, 0], "out of range"),
        ("UINT8", "uint_contents", [256, 0], "out of range"),
        ("INT32", "fp32_contents", [1.0, 2.0], "given in int_contents, not in fp32_contents"),
        ("FP16", "fp32_contents", [1.0, 2.0], "no typed contents"),
        ("INT32", "int_contents", [1], "Expected 8, got 4"),
    ],
)
def test_wrong_typed_contents(datatype: str, field: str, values: list[Any], text: str) -> None:
    model = FakeModel(identity_config(datatype=datatype, dims=(2,)))
    message = pb.ModelInferRequest(model_name="identity")
    getattr(message.inputs.add(name="input", datatype=datatype, shape=[1, 2]).contents, field).extend(values)
    with pytest.raises(InvalidRequest, match=text):
        decoded(model, message)


# Answers


def parsed(parts: list[Buffer], kind: Any = pb.ModelInferResponse) -> Any:
    data = b"".join(map(bytes, parts))
    assert data[:5] == b"\0" + (len(data) - 5).to_bytes(4, "big")
    return kind.FromString(data[5:])


@pytest.mark.parametrize("request_id", [b"", b"42", b"x" * 300])
@pytest.mark.parametrize("size", [1, 200, 20_000])
def test_an_answer_is_what_protobuf_reads(request_id: bytes, size: int) -> None:
    model = FakeModel(identity_config(dims=(-1,)))
    message = pb.ModelInferRequest(model_name="identity", id=request_id.decode())
    message.inputs.add(name="input", datatype="FP32", shape=[1, size])
    message.raw_input_contents.append(bytes(4 * size))
    found, tensors = decoded(model, message)
    for _ in range(2):
        parts = encode(found.template, request_id, (OutputTensor((1, size), bytes(tensors[0])),))
        answer = parsed(parts)
        assert (answer.model_name, answer.model_version, answer.id) == ("identity", "1", request_id.decode())
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("output", "FP32", [1, size])]
        assert list(answer.raw_output_contents) == [tensors[0]]
        assert parsed(streamed(parts), pb.ModelStreamInferResponse).infer_response == answer
    last = parsed(encode(found.template, request_id, (OutputTensor((1, size), bytes(tensors[0])),), final=True))
    assert last.parameters["triton_final_response"].bool_param
    assert last.raw_output_contents == answer.raw_output_contents


def test_several_outputs() -> None:
    message = pb.ModelInferRequest(model_name="two")
    message.inputs.add(name="a", datatype="FP32", shape=[1, 2])
    message.inputs.add(name="s", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.extend([bytes(8), encode_bytes([b"hi"])])
    message.outputs.add(name="y")
    message.outputs.add(name="x").parameters["classification"].int64_param = 1
    found, _ = decoded(FakeModel(TWO, labels={"x": ("no", "yes")}), message)
    values = np.array([[0.5, 2.0]], np.float32).tobytes()
    outputs = (OutputTensor((1, 2), values), OutputTensor((1, 1), encode_bytes([b"hi"])))
    answer = parsed(encode(found.template, b"", outputs))
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("y", "BYTES", [1, 1]),
        ("x", "BYTES", [1, 1]),
    ]
    assert list(answer.raw_output_contents) == [encode_bytes([b"hi"]), encode_bytes([b"2.000000:1:yes"])]


def test_an_error_in_a_stream() -> None:
    answer = parsed(stream_error("bad é", b"7"), pb.ModelStreamInferResponse)
    assert (answer.error_message, answer.infer_response.id) == ("bad é", "7")
    assert parsed(framed([b""]), pb.ModelStreamInferResponse) == pb.ModelStreamInferResponse()
