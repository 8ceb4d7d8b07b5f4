"""The port that people and Prometheus look at: a Starlette application on uvicorn, in the server's own loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

from efserve.server.catalog import Catalog


class MetricsPort:
    """Serves `/metrics` while it runs; uvicorn is imported when it starts."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._server: object = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and answers the port that it got; raises OSError where it cannot."""
        listener = _bind(host, port)
        self._task = asyncio.get_running_loop().create_task(self._run(listener))
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Closes the port; a scrape that is under way is cut off."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, listener: socket.socket) -> None:
        import uvicorn

        from efserve.frontend.web import create_app

        class Server(uvicorn.Server):
            """uvicorn without its signal handlers: the server's own decide when to stop."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        config = uvicorn.Config(create_app(self._catalog), log_level="warning", lifespan="off", access_log=False)
        await Server(config).serve(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
