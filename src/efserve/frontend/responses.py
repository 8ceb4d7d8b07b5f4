"""HTTP/1.1 answers as bytes: status lines, heads, error bodies.

An answer never carries a `Connection` header: only the connection knows whether it goes on, and adds it.
"""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from efserve.errors import EfserveError
from efserve.inference import Buffer

Answer = bytes | list[Buffer]  # a list's first part holds at least the status line

JSON_TYPE = b"application/json"
BINARY_TYPE = b"application/octet-stream"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Response:
    """What a small route answers."""

    status: int = 200
    body: bytes = b""


def encode(response: Response, *, with_body: bool = True) -> bytes:
    """The whole answer; `with_body` is False for HEAD."""
    head = answer_head(len(response.body), JSON_TYPE, status=response.status)
    return head + response.body if with_body else head


def answer_head(length_bytes: int, content_type: bytes, *, status: int = 200, extra: bytes = b"") -> bytes:
    """Status line and headers, with the empty line that ends them."""
    return b"%bContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n" % (
        STATUS_LINES[status],
        content_type,
        extra,
        length_bytes,
    )


def json_response(value: object, status: int = 200) -> Response:
    """`value` as a JSON body."""
    return Response(status, msgspec.json.encode(value))


def error_response(status: int, text: str) -> Response:
    """The protocol's error body."""
    return json_response({"error": text}, status)


def error_answer(error: EfserveError) -> bytes:
    """An error as the protocol tells it."""
    return encode(error_response(error.http_status, str(error)))


INTERNAL_ERROR = encode(error_response(500, "internal error; the server's log has the details"))


def with_connection(answer: Answer, line: bytes) -> Answer:
    """The answer with a header line put in after its status line."""
    first = bytes(answer if isinstance(answer, bytes) else answer[0])
    end = first.index(b"\r\n") + 2
    marked = first[:end] + line + first[end:]
    return marked if isinstance(answer, bytes) else [marked, *answer[1:]]
