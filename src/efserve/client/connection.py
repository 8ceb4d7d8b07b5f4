"""What a load generator needs of a transport: a connection that carries one request at a time and calls back.

HTTP is in `http.py`; another transport is another class with these methods. No task and no future per request.
"""

from typing import Protocol

# Kinds of failures; an answer with an error status has the kind `<protocol> <status>`, such as `http 503`.
CONNECT = "connect"  # no connection to the server
RESET = "reset"  # the connection broke
CLOSED = "closed"  # the server closed it before the answer was whole
TIMEOUT = "timeout"  # no answer within the deadline
GARBLED = "garbled"  # bytes that are no answer
WRONG_SIZE = "wrong size"  # an answer whose tensors are shorter or longer than the model's


def wrong_size(payload_bytes: int, right_bytes: int) -> tuple[str, str]:
    """Kind and text of such a failure."""
    return WRONG_SIZE, f"the answer has {payload_bytes} bytes of tensors, the first one had {right_bytes}"


class Connection(Protocol):
    """One connection, with at most one request under way. It opens at the first `send`, and again after a failure."""

    protocol: str  # for the kinds of its failures: http, grpc

    # Owned by the caller, about the request under way:
    start_ns: int  # when it was sent
    due_ns: int  # when it was to be sent
    model: int  # to which of the models under load

    def send(self, request: bytes) -> None:
        """Send a request prepared for this transport; the listener hears of it exactly once. Never blocks or raises."""

    def abort(self, kind: str, text: str) -> None:
        """Give up the request under way, if any: drop the connection and tell the listener."""

    def close(self) -> None:
        """Drop the connection without a word to the listener."""

    def error_text(self) -> str:
        """What the server said in the last answer that was not a success."""


class Listener(Protocol):
    """Who sends on a connection. Both calls may `send` again at once. Times are `time.monotonic_ns()`."""

    def on_answer(self, connection: Connection, status: int, payload_bytes: int, end_ns: int) -> None:
        """A whole answer is here. `payload_bytes` counts its tensors in binary, or -1 when they are not binary."""

    def on_failure(self, connection: Connection, kind: str, text: str, end_ns: int) -> None:
        """There will be no answer, for the reason in `kind` and `text`."""
