"""One end of the control connection between the gateway and a worker: small packets, in order, whole or not at all."""

import socket

from efserve.transport.messages import MAX_MESSAGE_BYTES


class Channel:
    """A SOCK_SEQPACKET socket. In the gateway nothing blocks; in the worker `receive` waits.

    A worker holds a few batches at most, so a few small packets are under way and the socket's buffer always suffices.
    """

    __slots__ = ("_socket", "fileno", "send")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.fileno = end.fileno
        # Sends one whole packet. OSError: the peer is gone, or (BlockingIOError) it has read nothing for a long time.
        self.send = end.send

    @classmethod
    def pair(cls) -> tuple["Channel", socket.socket]:
        """The gateway's end, which never blocks, and the socket to hand to the worker."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def __repr__(self) -> str:
        return f"<Channel fd={self._socket.fileno()}>"

    def receive(self) -> bytes | None:
        """The next message; empty when the peer is gone; None when there is none yet (only where nothing blocks)."""
        try:
            return self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # the peer went without reading all; what it sent before is still there
            return self.receive()

    def close(self) -> None:
        """Close this end; the peer sees the end of the stream."""
        self._socket.close()
