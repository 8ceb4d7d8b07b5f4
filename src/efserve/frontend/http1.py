"""The v2 port over HTTP/1.1."""

from efserve.frontend.admin import Admin
from efserve.frontend.connection import Connection, Hub, Limits
from efserve.frontend.heads import Heads
from efserve.frontend.port import Port
from efserve.frontend.routes import Routes
from efserve.frontend.service import Service
from efserve.transport.regions import ClientRegions


def open_http(
    service: Service,
    *,
    max_request_bytes: int,
    server_name: str = "efserve",
    keep_alive_s: float = 75.0,
    admin: Admin | None = None,
    memory: ClientRegions | None = None,
) -> Port:
    """A port that serves the KServe v2 routes of one service over HTTP/1.1."""
    routes = Routes(service, server_name, max_request_bytes, admin, memory)
    limits = Limits(keep_alive_s=keep_alive_s)
    hub = Hub(Heads(routes.resolve, max_request_bytes), max_request_bytes, limits)
    return Port(lambda: Connection(hub), hub.group)
