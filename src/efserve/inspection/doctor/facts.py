"""The facts that the checks judge, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from efserve.devices.cpu import HostCpu
from efserve.devices.gpu import GpuFacts
from efserve.inspection.probes import Library


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A file such as /dev/nvidia0."""

    path: str
    usable: bool  # this process may read and write it


@dataclass(frozen=True, slots=True)
class Hardware:
    """What speaks of an NVIDIA GPU without its driver."""

    cards: int = 0  # of NVIDIA on the PCI bus
    nodes: tuple[DeviceNode, ...] = ()


@dataclass(frozen=True, slots=True)
class MpsDaemon:
    """A control daemon of MPS that runs, whoever started it."""

    pid: int  # 0: it runs out of sight, and is known by its pipe directory
    uid: int
    pipe_directory: str  # empty: its environment may not be read
    problem: str = ""  # why it does not answer; empty: it does, or cannot be asked


@dataclass(frozen=True, slots=True)
class MpsFacts:
    """MPS on this machine."""

    control_program: str = ""  # path; empty: not on PATH
    daemons: tuple[MpsDaemon, ...] = ()
    server_uids: tuple[int, ...] = ()  # users of the servers that run


@dataclass(frozen=True, slots=True)
class Container:
    """What walls this process in."""

    kind: str = ""  # "docker", "podman", "kubernetes", "container"; empty: none was recognised
    host_ipc: bool | None = None  # whether it shares the host's IPC namespace; None: cannot be told
    shm_total_bytes: int = 0  # of /dev/shm
    shm_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port that `efserve serve` takes by default."""

    number: int
    option: str  # that names another one
    problem: str = ""  # why it cannot be listened on


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that efserve writes to."""

    path: str
    purpose: str
    writable: bool


@dataclass(frozen=True, slots=True)
class Host:
    """The system around this process."""

    kernel: str
    missing_features: tuple[str, ...]  # of the kernel, of those that efserve needs
    uid: int
    open_files: int  # soft limit
    open_files_most: int  # hard limit
    ports: tuple[Port, ...]
    folders: tuple[Folder, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is judged."""

    gpu: GpuFacts
    hardware: Hardware
    mps: MpsFacts
    container: Container
    cpu: HostCpu
    host: Host
    libraries: Mapping[str, Library | None]  # None: not installed
    distributions: Mapping[str, str] = field(default_factory=dict)  # of onnxruntime that are installed, with versions
    cuda_environment: Mapping[str, str] = field(default_factory=dict)  # CUDA_VISIBLE_DEVICES and CUDA_MPS_*
