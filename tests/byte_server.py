"""A server of given bytes: each connection gets its script of pieces after a request, then is kept, closed or reset."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, cast

Then = Literal["keep", "close", "reset"]


@dataclass
class Script:
    """What to send after each whole request, piece by piece, and what to do with the connection then."""

    pieces: Sequence[bytes]
    then: Then = "keep"
    connections: int = 0
    requests: int = 0


class _Connection(asyncio.Protocol):
    def __init__(self, script: Script) -> None:
        self.script = script

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.script.connections += 1

    def data_received(self, data: bytes) -> None:
        assert b"\r\n\r\n" in data
        self.script.requests += 1
        self.send(list(self.script.pieces))

    def send(self, pieces: list[bytes]) -> None:
        """One piece per turn of the loop, so that the client, in the same loop, reads them one by one."""
        if pieces:
            self.transport.write(pieces[0])
            asyncio.get_running_loop().call_later(0.001, self.send, pieces[1:])
        elif self.script.then == "close":
            self.transport.close()
        elif self.script.then == "reset":
            tcp = cast("socket.socket", self.transport.get_extra_info("socket"))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """The URL of a server in this loop that follows the script."""
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(script), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
