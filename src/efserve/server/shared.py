"""What all served versions have in common: the memory of clients, the response cache, the traces, MPS."""

from dataclasses import dataclass, field

from efserve.config import mps_run_directory
from efserve.partitions.mps import MpsDaemons
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms
from efserve.server.cache import ResponseCache
from efserve.server.mps import MpsService
from efserve.server.tracing import Tracer
from efserve.transport.regions import ClientRegions

_MPS_DEADLINE_S = 10.0  # of one control command


@dataclass(frozen=True, slots=True)
class Shared:
    """One of each per server."""

    memory: ClientRegions = field(default_factory=ClientRegions)
    tracer: Tracer = field(default_factory=Tracer)
    cache: ResponseCache | None = None
    mps: MpsService = field(default_factory=lambda: mps_service("off"))


def mps_service(mode: str) -> MpsService:
    """MPS for a server: auto, on or off."""
    programs = NvidiaPrograms(deadline_s=_MPS_DEADLINE_S)
    return MpsService(MpsDaemons(RunDirectory(mps_run_directory()), programs), mode)
