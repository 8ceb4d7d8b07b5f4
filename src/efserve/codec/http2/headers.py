"""Header blocks: HPACK by the hpack library, each repeated block decoded once, and the rules for header fields.

What we send is literals and entries of the static table, so there is no dynamic table to keep in step with the peer.
"""

import re
from collections.abc import Iterable
from typing import Any

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from efserve.codec.http2.frames import ConnectionFault, ErrorCode

Field = tuple[bytes, bytes]

MAX_CACHED_BLOCK_BYTES = 1024
MAX_CACHED_BLOCKS = 64

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")
_CONNECTION_FIELDS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_REQUEST_FIELDS = {b":method", b":scheme", b":path", b":authority"}


class Head:
    """One decoded header block, shared by all its repeats; `route` belongs to whoever handles requests."""

    __slots__ = ("content_length", "fault", "fields", "request_fault", "route")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.route: Any = None
        self.content_length = -1
        self.fault = _fault_of(fields)  # what is wrong with it, whatever it is used for
        if not self.fault and (length := self.get(b"content-length")):
            if length.isdigit() and len(length) < 19:
                self.content_length = int(length)
            else:
                self.fault = "content-length is no number"
        self.request_fault = self.fault or self._request_fault()  # what makes this no request head

    def get(self, name: bytes) -> bytes:
        """The values of a field, joined as a list; empty when there is none."""
        return b",".join([value for key, value in self.fields if key == name])

    def _request_fault(self) -> str:
        pseudo = [name for name, _ in self.fields if name.startswith(b":")]
        if len(set(pseudo)) != len(pseudo) or not set(pseudo) <= _REQUEST_FIELDS:
            return "a pseudo-header field is unknown or appears twice"
        needed = {b":method", b":scheme", b":path"} if self.get(b":method") != b"CONNECT" else {b":authority"}
        if not needed <= set(pseudo) or (b":path" in needed and not self.get(b":path")):
            return "a pseudo-header field is missing"
        return ""

    def trailers_fault(self) -> str:
        """What makes these no trailers; empty when they are."""
        if any(name.startswith(b":") for name, _ in self.fields):
            return "trailers hold a pseudo-header field"
        return self.fault

    def response_fault(self) -> str:
        """What makes this no response head; empty when it is one."""
        pseudo = [name for name, _ in self.fields if name.startswith(b":")]
        if pseudo != [b":status"] or not re.fullmatch(rb"[1-5]\d\d", self.get(b":status")):
            return "the response has no status"
        return self.fault


def _fault_of(fields: tuple[Field, ...]) -> str:
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular:
                return "a pseudo-header field follows a regular one"
        else:
            regular = True
            if not _NAME.fullmatch(name):
                return "a field name holds a character that is not allowed"
        if _BAD_VALUE.search(value):
            return "a field value holds a character that is not allowed"
        if name in _CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
            return "a field belongs to HTTP/1.1 connections"
    return ""


class _WatchedTable(HeaderTable):
    """The dynamic table, which counts its changes: entries added (and with them evicted), and changes of its size."""

    changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return int(super().maxsize)

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.changes += 1
        HeaderTable.maxsize.fset(self, newmax)  # type: ignore[attr-defined]  # mypy takes a property for its getter


class HeaderDecoder:
    """Decodes one connection's header blocks.

    A block means what its bytes say under the dynamic table of that moment. So a block is remembered when decoding it
    changed nothing in the table, and all that is remembered is forgotten as soon as any block changes the table.
    """

    __slots__ = ("_decoder", "_known", "_table")

    def __init__(self, list_bytes: int) -> None:
        self._known: dict[bytes, Head] = {}
        self._decoder = Decoder(max_header_list_size=list_bytes)
        self._table = self._decoder.header_table = _WatchedTable()

    def decode(self, block: bytes) -> Head:
        """The head in one whole block; raises ConnectionFault, after which nothing more can be decoded."""
        known = self._known.get(block)
        if known is not None:
            return known
        changes = self._table.changes
        try:
            fields = tuple((bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as exc:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header list is too large: {exc}") from exc
        except HPACKError as exc:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"a header block cannot be decoded: {exc}") from exc
        head = Head(fields)
        if self._table.changes != changes:
            self._known.clear()
        elif len(block) <= MAX_CACHED_BLOCK_BYTES:
            if len(self._known) >= MAX_CACHED_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head


_STATIC = {(name, value): index for index, (name, value) in enumerate(HeaderTable.STATIC_TABLE, 1) if value}
_STATIC_NAMES = {name: index for index, (name, _) in reversed([*enumerate(HeaderTable.STATIC_TABLE, 1)])}


def encode_headers(fields: Iterable[Field]) -> bytes:
    """A header block that depends on no dynamic table and leaves none behind."""
    return b"".join([_encode_field(name, value) for name, value in fields])


def _encode_field(name: bytes, value: bytes) -> bytes:
    if (name, value) in _STATIC:
        return _integer(_STATIC[name, value], 7, 0x80)
    index = _STATIC_NAMES.get(name, 0)
    start = _integer(index, 4, 0) if index else b"\0" + _integer(len(name), 7, 0) + name
    return start + _integer(len(value), 7, 0) + value


def _integer(value: int, bits: int, first: int) -> bytes:
    """HPACK's integer with a prefix of so many bits, RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    encoded, value = bytearray((first | most,)), value - most
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
