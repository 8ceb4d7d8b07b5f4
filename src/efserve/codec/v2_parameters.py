"""The parameters of a whole inference request: reserved names, and what their values may be, in Triton's words."""

from typing import Any

import msgspec

from efserve.errors import InvalidRequest

_FLAGS = ("sequence_start", "sequence_end", "binary_data_output")
_COUNTS = ("priority", "timeout")
_MAX_COUNT = 2**64 - 1
_CHOICES = {  # of a gRPC parameter's value, by name
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
}


class RequestParameters(msgspec.Struct):
    """The reserved names that mean something here.

    Those of sequences may be given and mean nothing: no model that batches sequences is served, and the others ignore
    them in Triton too.
    """

    binary_data_output: bool = False
    priority: int = 0
    timeout: int = 0


def parse_parameters(parameters: dict[str, Any]) -> RequestParameters:
    """The reserved parameters; InvalidRequest for a wrong type, or a name that is reserved for the server."""
    for key, value in parameters.items():
        if key.startswith("triton_") and key != "triton_enable_empty_final_response":
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: triton_enable_empty_final_response, got: {key}"
            )
        _check_json(key, value)
    return msgspec.convert(parameters, RequestParameters)


def read_grpc_parameters(given: Any) -> dict[str, Any]:
    """The parameters of a part of a protobuf request by name; InvalidRequest for one without a value."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter '{key}' has no value")
        found[key] = getattr(value, choice)
    return found


def read_grpc_request_parameters(given: Any) -> dict[str, Any]:
    """Those of the whole request, but for sequences'; InvalidRequest also for a value of the wrong kind."""
    found = read_grpc_parameters(given)
    for key in [key for key in _CHOICES if key in found]:
        if given[key].WhichOneof("parameter_choice") not in _CHOICES[key]:
            expected = " or ".join(_CHOICES[key])
            raise InvalidRequest(f"invalid value type for '{key}' parameter, expected {expected}.")
        if key in _COUNTS and found[key] < 0:
            raise InvalidRequest(f"invalid value for '{key}', expected value >= 0.")
    return {key: value for key, value in found.items() if not key.startswith("sequence_")}


def _check_json(key: str, value: object) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    if key in _FLAGS:
        if not isinstance(value, bool):
            raise InvalidRequest(f"Unable to parse '{key}': attempt to access JSON non-boolean as boolean")
    elif key in _COUNTS:
        if not is_count:
            raise InvalidRequest(
                f"Unable to parse '{key}': attempt to access JSON non-unsigned-integer as unsigned-integer"
            )
    elif key == "sequence_id":
        if not (is_count or isinstance(value, str)):
            raise InvalidRequest(f"Unable to parse '{key}': attempt to access JSON non-string as string")
    elif not isinstance(value, (str, int, float)):
        raise InvalidRequest(f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.")
