"""HTTP/2 frames: types, flags, settings, error codes, and the two ways in which a peer's frame can be wrong."""

import struct
from collections.abc import Mapping
from enum import IntEnum

from efserve.errors import InvalidRequest
from efserve.inference import Body

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
HEAD = struct.Struct(">IBI")  # length << 8 | type, flags, stream
UINT32 = struct.Struct(">I")
SETTING = struct.Struct(">HI")

# Plain integers: they are compared for every frame.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
LARGEST_FRAME_BYTES = (1 << 24) - 1
LARGEST_WINDOW = (1 << 31) - 1
LARGEST_STREAM = (1 << 31) - 1


class ErrorCode(IntEnum):
    """Why a stream or a connection ends; RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(InvalidRequest):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamFault(InvalidRequest):
    """The peer broke the protocol in a way that ends one stream."""

    def __init__(self, stream_id: int, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.stream_id = stream_id
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings_frame(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join([SETTING.pack(key, value) for key, value in values.items()]))


def header_frames(stream_id: int, block: bytes, most_bytes: int, *, end: bool) -> bytes:
    """A HEADERS frame, and CONTINUATION frames where the block is larger than the peer's frames may be."""
    flags = END_STREAM if end else 0
    if len(block) <= most_bytes:
        return HEAD.pack(len(block) << 8 | HEADERS, flags | END_HEADERS, stream_id) + block
    pieces = [block[at : at + most_bytes] for at in range(0, len(block), most_bytes)]
    frames = [frame(HEADERS, flags, stream_id, pieces[0])]
    frames += [frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(frames)


def without_padding(flags: int, payload: Body) -> Body:
    """The payload of a DATA or HEADERS frame without its padding; raises ConnectionFault when that is too long."""
    if not flags & PADDED:
        return payload
    if not len(payload) or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, UINT32.pack(increment))


# Length, and whether the frame belongs to a stream (None: to either).
_CONTROL_SHAPES: dict[int, tuple[int | None, bool | None]] = {
    PRIORITY: (5, True),
    RST_STREAM: (4, True),
    SETTINGS: (None, False),
    PING: (8, False),
    GOAWAY: (None, False),
    WINDOW_UPDATE: (4, None),
}


def check_control(kind: int, flags: int, stream_id: int, size_bytes: int) -> None:
    """Raise ConnectionFault for a control frame with a length or a stream that it cannot have."""
    if kind == PUSH_PROMISE:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which was not allowed")
    length, on_stream = _CONTROL_SHAPES.get(kind, (None, None))
    if on_stream is not None and on_stream != bool(stream_id):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on stream {stream_id}")
    if kind == SETTINGS:
        wrong = size_bytes > 0 if flags & ACK else size_bytes % SETTING.size != 0
    elif kind == GOAWAY:
        wrong = size_bytes < 8
    else:
        wrong = length not in (None, size_bytes)
    if wrong:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} with {size_bytes} bytes")


def check_setting(key: int, value: int, *, is_client: bool) -> None:
    """Raise ConnectionFault for a setting out of its range; `is_client` tells who received it."""
    if key == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {value}")
    if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
    if key == ENABLE_PUSH and value > (0 if is_client else 1):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
