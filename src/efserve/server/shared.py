"""What all served versions have in common: the memory of clients, the response cache, the traces."""

from dataclasses import dataclass, field

from efserve.server.cache import ResponseCache
from efserve.server.tracing import Tracer
from efserve.transport.regions import ClientRegions


@dataclass(frozen=True, slots=True)
class Shared:
    """One of each per server."""

    memory: ClientRegions = field(default_factory=ClientRegions)
    tracer: Tracer = field(default_factory=Tracer)
    cache: ResponseCache | None = None
