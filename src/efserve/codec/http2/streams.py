"""One HTTP/2 stream: its state, by one table, and its two flow-control windows."""

from collections import deque
from enum import IntEnum
from typing import Any

from efserve.inference import Buffer


class State(IntEnum):
    """RFC 9113, section 5.1, but idle, which is no stream yet, and what belongs to server push."""

    OPEN = 1
    HALF_CLOSED_LOCAL = 2  # we have ended our side
    HALF_CLOSED_REMOTE = 3  # the peer has ended its side
    CLOSED = 4


class Step(IntEnum):
    """What happens to a stream's state."""

    RECEIVE_END = 1
    SEND_END = 2
    RESET = 3  # by either end


_MOVES: dict[State, dict[Step, State]] = {
    State.OPEN: {
        Step.RECEIVE_END: State.HALF_CLOSED_REMOTE,
        Step.SEND_END: State.HALF_CLOSED_LOCAL,
        Step.RESET: State.CLOSED,
    },
    State.HALF_CLOSED_LOCAL: {Step.RECEIVE_END: State.CLOSED, Step.RESET: State.CLOSED},
    State.HALF_CLOSED_REMOTE: {Step.SEND_END: State.CLOSED, Step.RESET: State.CLOSED},
    State.CLOSED: {},
}
RECEIVING = frozenset((State.OPEN, State.HALF_CLOSED_LOCAL))
SENDING = frozenset((State.OPEN, State.HALF_CLOSED_REMOTE))


class Stream:
    """A stream that is not idle. `queue` waits for the peer's window, then come `trailers`, then the end if `ends`.

    `call` belongs to whoever handles the stream's events.
    """

    __slots__ = (
        "call",
        "ends",
        "has_head",
        "id",
        "missing_bytes",
        "owed_bytes",
        "queue",
        "queued_bytes",
        "receive_window",
        "send_window",
        "state",
        "trailers",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.state = State.OPEN
        self.call: Any = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.owed_bytes = 0  # received, used and not yet given back to the peer's window
        self.missing_bytes = -1  # of the body, where its head tells its length
        self.has_head = False  # a header block has been received
        self.queue: deque[Buffer] | None = None
        self.queued_bytes = 0
        self.trailers = b""
        self.ends = False

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.state.name}, {self.queued_bytes} bytes queued>"

    def move(self, step: Step) -> None:
        """Take one step; KeyError for one that the state does not have, which is a mistake of ours."""
        self.state = _MOVES[self.state][step]
