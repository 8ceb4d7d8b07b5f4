"""How much of unfinished messages one gRPC connection may make the server hold.

Beyond the limit only the call that has waited longest is let go on, so that each comes to its end at some time.
"""

from typing import Protocol


class Waiting(Protocol):
    """A call in the middle of a message."""

    def on_sent(self) -> None:
        """It may send on."""


class Holding:
    """The calls of one connection that are in the middle of a message, the oldest first, and their bytes."""

    __slots__ = ("_bytes", "_held", "most_bytes")

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held: dict[Waiting, int] = {}
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Holding {self._bytes} of {self.most_bytes} bytes for {len(self._held)} calls>"

    def put(self, call: Waiting, size_bytes: int) -> None:
        """The call holds so many bytes; with none it makes room for the others."""
        before = self._held.get(call)
        if size_bytes:
            self._held[call] = size_bytes
            self._bytes += size_bytes - (before or 0)
        elif before is not None:
            del self._held[call]
            self._bytes -= before
            for other in list(self._held):
                other.on_sent()

    def may_go_on(self, call: Waiting) -> bool:
        """Whether the client may send more of this call's message now."""
        return self._bytes < self.most_bytes or next(iter(self._held), call) is call
