"""Messages of gRPC's own services, and the descriptions of all messages that the server knows, for reflection.

In a pool of their own, so that nobody who loads the generated files of these services is in the way.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from efserve.triton_messages import model_config_pb2
from efserve.triton_service import service_pb2

HEALTH = "grpc.health.v1"
REFLECTION = ("grpc.reflection.v1alpha", "grpc.reflection.v1")
SERVICES = ("inference.GRPCInferenceService", f"{HEALTH}.Health", *[f"{name}.ServerReflection" for name in REFLECTION])

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
}
# Messages as in their .proto files: "type name = number", a type that is no scalar being a message of the same file.
_HEALTH_MESSAGES = {
    "HealthCheckRequest": ("string service = 1",),
    "HealthCheckResponse": ("enum status = 1",),
}
_REFLECTION_MESSAGES = {
    "ServerReflectionRequest": (
        "string host = 1",
        "oneof string file_by_filename = 3",
        "oneof string file_containing_symbol = 4",
        "oneof ExtensionRequest file_containing_extension = 5",
        "oneof string all_extension_numbers_of_type = 6",
        "oneof string list_services = 7",
    ),
    "ExtensionRequest": ("string containing_type = 1", "int32 extension_number = 2"),
    "ServerReflectionResponse": (
        "string valid_host = 1",
        "ServerReflectionRequest original_request = 2",
        "oneof FileDescriptorResponse file_descriptor_response = 4",
        "oneof ExtensionNumberResponse all_extension_numbers_response = 5",
        "oneof ListServiceResponse list_services_response = 6",
        "oneof ErrorResponse error_response = 7",
    ),
    "FileDescriptorResponse": ("repeated bytes file_descriptor_proto = 1",),
    "ExtensionNumberResponse": ("string base_type_name = 1", "repeated int32 extension_number = 2"),
    "ListServiceResponse": ("repeated ServiceResponse service = 1",),
    "ServiceResponse": ("string name = 1",),
    "ErrorResponse": ("int32 error_code = 1", "string error_message = 2"),
}


def _file(package: str, name: str, messages: Mapping[str, tuple[str, ...]]) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for field in fields:
            _add_field(message, package, field)
    return file


def _add_field(message: Any, package: str, text: str) -> None:
    *labels, kind, name, _, number = text.split()
    label = _Field.LABEL_REPEATED if "repeated" in labels else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if "oneof" in labels:
        if not message.oneof_decl:
            message.oneof_decl.add(name="message_" + message.name.removeprefix("ServerReflection").lower())
        field.oneof_index = 0
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind == "enum":
        field.type, field.type_name = _Field.TYPE_ENUM, f".{package}.{message.name}.ServingStatus"
        values = message.enum_type.add(name="ServingStatus").value
        for value, value_name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
            values.add(name=value_name, number=value)
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"


def _add_method(service: Any, package: str, name: str, kinds: tuple[str, str], *, streams: tuple[bool, bool]) -> None:
    service.method.add(
        name=name,
        input_type=f".{package}.{kinds[0]}",
        output_type=f".{package}.{kinds[1]}",
        client_streaming=streams[0],
        server_streaming=streams[1],
    )


def _health_file() -> Any:
    file = _file(HEALTH, "grpc/health/v1/health.proto", _HEALTH_MESSAGES)
    service, kinds = file.service.add(name="Health"), ("HealthCheckRequest", "HealthCheckResponse")
    _add_method(service, HEALTH, "Check", kinds, streams=(False, False))
    _add_method(service, HEALTH, "Watch", kinds, streams=(False, True))
    return file


def _reflection_file(package: str) -> Any:
    file = _file(package, f"{package.replace('.', '/')}/reflection.proto", _REFLECTION_MESSAGES)
    kinds = ("ServerReflectionRequest", "ServerReflectionResponse")
    service = file.service.add(name="ServerReflection")
    _add_method(service, package, "ServerReflectionInfo", kinds, streams=(True, True))
    return file


def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for module in (model_config_pb2, service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
    for file in (_health_file(), *map(_reflection_file, REFLECTION)):
        pool.Add(file)
    return pool


_POOL = _pool()


def message_type(package: str, name: str) -> Any:
    """The class of one of these messages."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


def _file_of(symbol: str) -> Any:
    try:
        return _POOL.FindFileContainingSymbol(symbol)
    except KeyError:  # a pool does not look for methods and fields
        return _POOL.FindFileContainingSymbol(symbol.rpartition(".")[0])


def file_bytes(name: str, *, is_symbol: bool) -> list[bytes]:
    """The serialized FileDescriptorProto that a file name or a symbol means, and those it needs; none when unknown."""
    try:
        first = _file_of(name) if is_symbol else _POOL.FindFileByName(name)
    except KeyError:
        return []
    files, waiting = {}, [first]
    while waiting:
        file = waiting.pop()
        if file.name not in files:
            files[file.name] = file.serialized_pb
            waiting += file.dependencies
    return list(files.values())
