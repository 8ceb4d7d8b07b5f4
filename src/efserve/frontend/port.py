"""A listening port and its open connections, of whatever protocol: start, drain, close, and a sweep once a second."""

import asyncio
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

SWEEP_S = 1.0
BACKLOG = 1024
HANDSHAKE_S = 10.0  # for a TLS client to get to its first request


def is_local(transport: asyncio.BaseTransport) -> bool:
    """Whether the client is on this machine: it came over loopback or a Unix socket."""
    peer = transport.get_extra_info("peername")
    return not isinstance(peer, tuple) or ip_address(peer[0].partition("%")[0]).is_loopback


class Member(Protocol):
    """An open connection."""

    @property
    def pending(self) -> int:
        """Requests received and not answered yet."""

    def drain(self) -> None:
        """Finish what has begun, and close then."""

    def abort(self) -> None:
        """Close at once; unsent answers are lost."""

    def sweep(self, now_s: float) -> None:
        """Close when nothing has moved for longer than the situation allows."""


class Group:
    """The open connections of one port; `empty` is set while there are none."""

    def __init__(self) -> None:
        self.draining = False
        self.members: set[Member] = set()
        self.empty = asyncio.Event()
        self.empty.set()

    def join(self, member: Member) -> None:
        """A connection has been opened."""
        self.members.add(member)
        self.empty.clear()

    def leave(self, member: Member) -> None:
        """A connection is closed."""
        self.members.discard(member)
        if not self.members:
            self.empty.set()

    def drain(self) -> None:
        """Let every connection finish what it has begun."""
        self.draining = True
        for member in list(self.members):
            member.drain()

    def abort(self) -> None:
        """Close every connection at once."""
        for member in list(self.members):
            member.abort()

    def sweep(self, now_s: float) -> None:
        """Close what has been idle, slow or stuck for too long; to be called about once a second."""
        for member in list(self.members):
            member.sweep(now_s)


class Port:
    """Accepts connections, each handled by a protocol of `connect`, which joins `group`."""

    def __init__(
        self, connect: Callable[[], asyncio.BaseProtocol], group: Group, also: Callable[[], None] = lambda: None
    ) -> None:
        self._connect = connect
        self._group = group
        self._also = also  # is called with each sweep
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []  # of Unix sockets
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._group.members)

    @property
    def in_flight(self) -> int:
        """Requests that are received and not answered yet."""
        return sum([member.pending for member in self._group.members])

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen, and return the bound port (`port` 0: any free one). Raises OSError where it cannot listen.

        May be repeated for several addresses.
        """
        loop, handshake_s = asyncio.get_running_loop(), HANDSHAKE_S if tls else None
        server = await loop.create_server(
            self._connect, host, port, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_s
        )
        self._has_opened(server)
        return int(server.sockets[0].getsockname()[1])

    async def start_unix(self, path: Path) -> None:
        """Listen on a Unix socket as well; raises OSError where that is not possible."""
        loop = asyncio.get_running_loop()
        self._has_opened(await loop.create_unix_server(self._connect, str(path), backlog=BACKLOG))
        self._paths.append(path)

    def _has_opened(self, server: asyncio.Server) -> None:
        self._servers.append(server)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep_and_again)

    def _sweep_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._group.sweep(loop.time())
        self._also()
        self._sweep = loop.call_later(SWEEP_S, self._sweep_and_again)

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    async def drain(self, deadline_s: float) -> None:
        """Close idle connections now and busy ones after their answers; after the deadline, all of them."""
        self._group.drain()
        try:
            async with asyncio.timeout(deadline_s):
                await self._group.empty.wait()
        except TimeoutError:
            self._group.abort()

    def close(self) -> None:
        """Stop at once: no more connections, no more answers."""
        self.stop_accepting()
        if self._sweep:
            self._sweep.cancel()
            self._sweep = None
        self._group.abort()
