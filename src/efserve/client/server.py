"""A v2 server by its URL, over the transport that its scheme names."""

from efserve.client.answers import HeadCache
from efserve.client.connection import Connection, Listener
from efserve.client.endpoint import SYSTEM_TRUST, Endpoint, GrpcEndpoint, Trust, is_grpc
from efserve.client.http import HttpConnection
from efserve.client.v2 import V2Client, V2Server


def v2_server(url: str, deadline_s: float = 30.0, trust: Trust = SYSTEM_TRUST) -> V2Server:
    """The server at `http[s]://` or `grpc[s]://`; raises UsageError for any other URL."""
    if is_grpc(url):
        from efserve.client.v2_grpc import V2GrpcClient  # here, for it brings protobuf

        return V2GrpcClient(url, deadline_s, trust)
    return V2Client(url, deadline_s, trust)


class Connector:
    """Makes connections for load to one server."""

    def __init__(self, url: str, trust: Trust = SYSTEM_TRUST) -> None:
        self._url = url
        self._heads = HeadCache()
        self._grpc = GrpcEndpoint(url, trust) if is_grpc(url) else None
        self._http = None if self._grpc else Endpoint(url, trust)

    def __repr__(self) -> str:
        return f"<Connector {self._url}>"

    def __call__(self, listener: Listener) -> Connection:
        """A connection that is not open yet."""
        if self._http is not None:
            return HttpConnection(self._http, listener, self._heads)
        from efserve.client.grpc import GrpcConnection
        from efserve.client.v2_grpc import payload_bytes

        assert self._grpc is not None
        return GrpcConnection(self._grpc, listener, payload_bytes)
