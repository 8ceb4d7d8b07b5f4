"""HTTP content codings: gzip and deflate, the latter being a zlib stream. Nothing inflates beyond the body limit."""

import zlib
from collections.abc import Iterable

from efserve.errors import InvalidRequest, Unsupported
from efserve.inference import Buffer

# zlib's window bits choose the framing. Both codings are Triton's; identity is the absence of one.
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
MAX_MEMBERS = 1024  # each costs a set-up, however little it holds
_STEP_BYTES = 64 * 1024  # what follows a member is copied, so little is given at a time
_LEVEL = 1  # a server on the client's machine or network gains more from speed than from the last percent


def body_too_large(max_bytes: int, size_bytes: int | None = None, *, is_raw: bool = False) -> InvalidRequest:
    """The error for a body beyond the limit, in Triton's words; `is_raw`: it is all one tensor."""
    if size_bytes is None:
        told = f"request body exceeds the maximum allowed value of {max_bytes}"
    elif is_raw:
        told = f"Raw input has a byte_size ({size_bytes} bytes) that exceeds the maximum allowed value of {max_bytes}"
    else:
        told = f"request JSON size of {size_bytes} bytes exceeds the maximum allowed input size of {max_bytes}"
    return InvalidRequest(f"{told} bytes. Use --http-max-input-size to increase the limit.")


def inflate(body: Buffer, encoding: str, max_bytes: int) -> memoryview:
    """The body without its Content-Encoding; Unsupported for an unknown coding, InvalidRequest when it is damaged."""
    if encoding in ("", "identity"):
        return memoryview(body)
    if encoding not in _WINDOW_BITS:
        raise Unsupported(f"Content-Encoding '{encoding}' is not supported; expected gzip, deflate or identity")
    parts: list[bytes] = []
    left_bytes, members = max_bytes, 0
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    for at in range(0, len(body), _STEP_BYTES):
        piece = bytes(body[at : at + _STEP_BYTES])
        while piece:
            if stream.eof:  # a gzip body may be several members, one after the other
                stream, members = zlib.decompressobj(_WINDOW_BITS[encoding]), members + 1
                if members == MAX_MEMBERS:
                    raise InvalidRequest(f"request body has more than {MAX_MEMBERS} {encoding} members")
            try:
                parts.append(stream.decompress(piece, left_bytes + 1))
            except zlib.error as exc:
                raise InvalidRequest(f"request body is not valid {encoding}: {exc}") from exc
            left_bytes -= len(parts[-1])
            if left_bytes < 0:
                raise body_too_large(max_bytes)
            piece = stream.unused_data
    if not stream.eof:
        raise InvalidRequest(f"request body is not valid {encoding}: the data ends too early")
    return memoryview(b"".join(parts))


def deflate(parts: Iterable[Buffer], encoding: str) -> bytes:
    """The parts, one after the other, in the given content coding."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return b"".join([*[stream.compress(part) for part in parts], stream.flush()])


def choose_encoding(accept: str) -> str:
    """The coding to answer in for a lower-case Accept-Encoding header; "" for none."""
    weights: dict[str, float] = {}
    for item in accept.split(","):
        name, *parameters = [word.strip() for word in item.split(";")]
        weights[name] = _weight(parameters)
    rest = weights.get("*", 0.0)
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
