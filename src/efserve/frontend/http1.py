"""The HTTP/1.1 server of the v2 port: its listening socket, its connections, and a sweep once a second."""

import asyncio
import ssl
from pathlib import Path

from efserve.frontend.admin import Admin
from efserve.frontend.connection import Connection, Hub, Limits
from efserve.frontend.heads import Heads
from efserve.frontend.routes import Routes
from efserve.frontend.service import Service
from efserve.transport.regions import ClientRegions

SWEEP_S = 1.0
BACKLOG = 1024
HANDSHAKE_S = 10.0  # for a TLS client to get to its first request


class HttpServer:
    """Serves the KServe v2 routes of one service over HTTP/1.1."""

    def __init__(
        self,
        service: Service,
        *,
        max_request_bytes: int,
        server_name: str = "efserve",
        keep_alive_s: float = 75.0,
        admin: Admin | None = None,
        memory: ClientRegions | None = None,
    ) -> None:
        self._service = service
        self._max_request_bytes = max_request_bytes
        self._server_name = server_name
        self._admin = admin or Admin()
        self._memory = memory or ClientRegions()
        self._limits = Limits(keep_alive_s=keep_alive_s)
        self._hub: Hub | None = None
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []  # of Unix sockets
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._hub.connections) if self._hub else 0

    @property
    def in_flight(self) -> int:
        """Requests that are received and not answered yet."""
        return sum(connection.pending for connection in self._hub.connections) if self._hub else 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen, and return the bound port (`port` 0: any free one). Raises OSError where it cannot listen.

        May be repeated for several addresses.
        """
        loop, hub = asyncio.get_running_loop(), self._opened()
        handshake_s = HANDSHAKE_S if tls else None
        server = await loop.create_server(
            lambda: Connection(hub), host, port, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_s
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def start_unix(self, path: Path) -> None:
        """Listen on a Unix socket as well; raises OSError where that is not possible."""
        loop, hub = asyncio.get_running_loop(), self._opened()
        self._servers.append(await loop.create_unix_server(lambda: Connection(hub), str(path), backlog=BACKLOG))
        self._paths.append(path)

    def _opened(self) -> Hub:
        if self._hub is None:
            routes = Routes(self._service, self._server_name, self._max_request_bytes, self._admin, self._memory)
            limit = self._max_request_bytes
            self._hub = Hub(Heads(routes.resolve, limit), limit, self._limits)
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep_and_again)
        return self._hub

    def _sweep_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        if self._hub:
            self._hub.sweep(loop.time())
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
        if self._hub is None:
            return
        self._hub.drain()
        try:
            async with asyncio.timeout(deadline_s):
                await self._hub.empty.wait()
        except TimeoutError:
            self._hub.abort()

    def close(self) -> None:
        """Stop at once: no more connections, no more answers."""
        self.stop_accepting()
        if self._sweep:
            self._sweep.cancel()
        if self._hub:
            self._hub.abort()
