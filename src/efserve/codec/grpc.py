"""gRPC over HTTP/2, for either end: status codes, header blocks, timeouts, and messages in the bytes of a body."""

from collections.abc import Sequence
from enum import IntEnum
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from efserve.codec.compression import deflate, inflate
from efserve.codec.http2.headers import encode_headers
from efserve.errors import EfserveError, InvalidRequest
from efserve.inference import Body, Buffer

PREFIX_BYTES = 5
ENCODINGS = ("gzip", "deflate")
ACCEPTED = b"identity,deflate,gzip"
_TIMEOUT_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MESSAGE_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Status(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


# The protocol's HTTP statuses, as gRPC says them.
_BY_HTTP_STATUS = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    405: Status.UNIMPLEMENTED,
    408: Status.DEADLINE_EXCEEDED,
    501: Status.UNIMPLEMENTED,
    503: Status.UNAVAILABLE,
}


class CallFailed(EfserveError):
    """A call ends with this status."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


def status_of(error: EfserveError) -> Status:
    """The status that tells an error."""
    return error.status if isinstance(error, CallFailed) else status_of_http(error.http_status)


def status_of_http(http_status: int) -> Status:
    """The gRPC status for one of the protocol's HTTP statuses."""
    return _BY_HTTP_STATUS.get(http_status, Status.INTERNAL)


# Header blocks of answers

_RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
RESPONSE_HEAD = encode_headers([*_RESPONSE, (b"grpc-accept-encoding", ACCEPTED)])
COMPRESSED_HEADS = {
    name: encode_headers([*_RESPONSE, (b"grpc-encoding", name.encode()), (b"grpc-accept-encoding", ACCEPTED)])
    for name in ENCODINGS
}
OK_TRAILERS = encode_headers([(b"grpc-status", b"0")])


def trailers(status: Status, text: str, *, alone: bool) -> bytes:
    """The header block that ends a call; `alone`: there was no head before it."""
    fields = [(b"grpc-status", b"%d" % status)]
    if text:
        fields.append((b"grpc-message", quote(text, safe=_MESSAGE_SAFE).encode()))
    return encode_headers([*_RESPONSE, (b"grpc-accept-encoding", ACCEPTED), *fields] if alone else fields)


def message_text(value: bytes) -> str:
    """The text in grpc-message."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def timeout_s(value: bytes) -> float:
    """Seconds in grpc-timeout; raises InvalidRequest for what is none."""
    number, unit = value[:-1], value[-1:]
    if unit not in _TIMEOUT_UNITS_S or not number.isdigit() or len(number) > 8:
        raise InvalidRequest(f"grpc-timeout is {value.decode('latin-1')!r}, expected up to 8 digits and one of HMSmun")
    return int(number) * _TIMEOUT_UNITS_S[unit]


# Messages


def framed(parts: Sequence[Buffer]) -> list[Buffer]:
    """One message, in parts, with its prefix."""
    return [b"\0" + sum(map(len, parts)).to_bytes(4, "big"), *parts]


def compressed(parts: Sequence[Buffer], encoding: str) -> bytes:
    """One message, in parts, compressed and with its prefix; `framed` and joined without an encoding."""
    if not encoding:
        return b"".join(framed(parts))
    data = deflate(parts, encoding)
    return b"\1" + len(data).to_bytes(4, "big") + data


class MessageReader:
    """The messages in one body, however it is cut. `encoding` is the body's grpc-encoding."""

    __slots__ = ("_body", "_encoding", "_filled", "_is_compressed", "_max_bytes", "_prefix")

    def __init__(self, max_bytes: int, encoding: str = "") -> None:
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._prefix = b""
        self._body: memoryview | None = None
        self._filled = 0
        self._is_compressed = 0

    @property
    def partial(self) -> bool:
        """True in the middle of a message."""
        return bool(self._prefix) or self._body is not None

    @property
    def held_bytes(self) -> int:
        """Of a message that is not whole yet."""
        return self._filled if self._body is not None else len(self._prefix)

    def feed(self, data: Body) -> list[Body]:
        """The messages that are whole now; `data` need not stay. Raises CallFailed for what cannot be read."""
        messages: list[Body] = []
        while len(data):
            if self._body is None:
                data, whole = self._begin(data)
                if whole is not None:
                    messages.append(self._plain(whole))
                continue
            part = data[: len(self._body) - self._filled]
            self._body[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == len(self._body):
                messages.append(self._plain(self._body))
                self._body = None
        return messages

    def _begin(self, data: Body) -> tuple[Body, Body | None]:
        """Read a prefix; the data after it, or after its message where that is whole."""
        if self._prefix or len(data) < PREFIX_BYTES:
            missing = PREFIX_BYTES - len(self._prefix)
            self._prefix += data[:missing]
            data = data[missing:]
            if len(self._prefix) < PREFIX_BYTES:
                return data, None
            prefix, self._prefix = self._prefix, b""
        else:
            prefix, data = bytes(data[:PREFIX_BYTES]), data[PREFIX_BYTES:]
        self._is_compressed = prefix[0]
        size = int.from_bytes(prefix[1:], "big")
        if size > self._max_bytes:
            raise CallFailed(
                Status.RESOURCE_EXHAUSTED,
                f"message of {size} bytes is larger than the limit of {self._max_bytes} bytes; "
                "start the server with a larger --max-request-bytes",
            )
        if prefix[0] > 1 or (prefix[0] and not self._encoding):
            raise CallFailed(Status.INTERNAL, "a message is flagged as compressed, but there is no grpc-encoding")
        if size <= len(data):
            return data[size:], bytes(data[:size])
        # Not a bytearray: that one is filled with zeros, which takes time and real memory before a byte has come.
        self._body, self._filled = np.empty(size, np.uint8).data, 0
        return data, None

    def _plain(self, body: Body) -> Body:
        return inflate(body, self._encoding, self._max_bytes) if self._is_compressed else body
