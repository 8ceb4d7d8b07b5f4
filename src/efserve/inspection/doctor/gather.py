"""Collects the facts. Changes nothing; what can hang runs in processes of its own, under a deadline."""

import asyncio
import errno
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from efserve.config import cuda_environment
from efserve.devices.cgroup import read_text
from efserve.devices.cpu import host_cpu
from efserve.errors import MpsFailed, MpsHangs
from efserve.inspection.doctor.facts import (
    Container,
    DeviceNode,
    Facts,
    Folder,
    Hardware,
    Host,
    MpsDaemon,
    MpsFacts,
    Port,
)
from efserve.inspection.probes import LIBRARIES, ask
from efserve.partitions.mps_control import MpsControl
from efserve.partitions.nvidia_programs import NvidiaPrograms

_CONTROL = "nvidia-cuda-mps-control"
_SERVER = "nvidia-cuda-mps-server"
_DEFAULT_PIPES = "/tmp/nvidia-mps"
_MPS_DEADLINE_S = 5.0
_INITIAL_IPC_NAMESPACE = 0xEFFFFFFF  # the kernel's PROC_IPC_INIT_INO
_PCI_NVIDIA, _PCI_DISPLAY = "0x10de", "0x03"
_PORTS = ((8000, "--http-port"), (8001, "--grpc-port"), (8002, "--metrics-port"))
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "ort-nightly-gpu")


def gather(deadline_s: float) -> Facts:
    """All facts of this machine; each library and the driver have until the deadline to answer."""
    gpu, libraries = ask(tuple(LIBRARIES), deadline_s)
    environment = cuda_environment()
    return Facts(
        gpu=gpu,
        hardware=hardware(),
        mps=mps_facts(_CONTROL, _MPS_DEADLINE_S, environment.get("CUDA_MPS_PIPE_DIRECTORY", "")),
        container=container(),
        cpu=host_cpu(),
        host=host(),
        libraries=libraries,
        distributions=dict(_distributions()),
        cuda_environment=environment,
    )


def hardware(root: Path = Path("/")) -> Hardware:
    """NVIDIA's cards on the PCI bus and its files in /dev; `root` is where both are looked for."""
    cards = [
        folder
        for folder in (root / "sys/bus/pci/devices").glob("*")
        if read_text(folder / "vendor") == _PCI_NVIDIA and read_text(folder / "class").startswith(_PCI_DISPLAY)
    ]
    nodes = [path for path in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", path.name)]
    return Hardware(
        len(cards), tuple(DeviceNode(str(path), os.access(path, os.R_OK | os.W_OK)) for path in sorted(nodes))
    )


def mps_facts(control: str, deadline_s: float, pipe_directory: str = "", root: Path = Path("/")) -> MpsFacts:
    """The daemons that run, each asked for its servers by the program `control`.

    `pipe_directory` is where CUDA programs started here would look for a daemon: it may be of one that runs outside of
    this container, and is one if it answers.
    """
    found = shutil.which(control) or ""
    daemons, server_uids = [], set()
    for folder in (root / "proc").glob("[0-9]*"):
        program = Path(read_text(folder / "cmdline").partition("\0")[0]).name
        if program == _SERVER:
            server_uids.add(_uid(folder))
        elif program == _CONTROL and _is_daemon(folder):
            daemons.append(MpsDaemon(int(folder.name), _uid(folder), _pipe_directory(folder)))
    if found:
        inherited = Path(pipe_directory) if pipe_directory else root / _DEFAULT_PIPES.lstrip("/")
        if str(inherited) not in {each.pipe_directory for each in daemons} and (inherited / "control").exists():
            daemons.append(MpsDaemon(0, _uid(inherited), str(inherited)))
        programs = NvidiaPrograms(control=found, deadline_s=deadline_s)
        daemons = asyncio.run(_asked(programs, daemons))
    return MpsFacts(found, tuple(sorted(daemons, key=lambda daemon: daemon.pid)), tuple(sorted(server_uids)))


def _pipe_directory(folder: Path) -> str:
    """Of the daemon with this folder in /proc; empty where its environment is out of sight."""
    entries = [entry.partition("=") for entry in read_text(folder / "environ").split("\0") if "=" in entry]
    environment = {name: value for name, _, value in entries}
    return environment.get("CUDA_MPS_PIPE_DIRECTORY", _DEFAULT_PIPES) if environment else ""


async def _asked(programs: NvidiaPrograms, daemons: Sequence[MpsDaemon]) -> list[MpsDaemon]:
    answers = await asyncio.gather(*(_answer(programs, daemon) for daemon in daemons))
    return [daemon for daemon in answers if daemon is not None]


async def _answer(programs: NvidiaPrograms, daemon: MpsDaemon) -> MpsDaemon | None:
    """The daemon, with the reason where it does not answer; None where there is only what a daemon left behind."""
    if not daemon.pipe_directory:
        return daemon
    try:
        await MpsControl(programs, Path(daemon.pipe_directory)).servers()
    except MpsHangs as exc:
        return replace(daemon, problem=str(exc))
    except MpsFailed as exc:
        return replace(daemon, problem=str(exc)) if daemon.pid else None
    return daemon


def container(root: Path = Path("/")) -> Container:
    """Whether this process is in a container, and what it shares with its host."""
    marks = {
        "kubernetes": (root / "var/run/secrets/kubernetes.io").exists(),
        "podman": (root / "run/.containerenv").exists(),
        "docker": (root / ".dockerenv").exists(),
        "container": re.search("docker|containerd|lxc", read_text(root / "proc/self/cgroup")) is not None,
    }
    try:
        host_ipc = (root / "proc/self/ns/ipc").stat().st_ino == _INITIAL_IPC_NAMESPACE
    except OSError:
        host_ipc = None
    try:
        shm = shutil.disk_usage(root / "dev/shm")
    except OSError:
        shm = None
    kind = next((name for name, found in marks.items() if found), "")
    return Container(kind, host_ipc, shm.total if shm else 0, shm.free if shm else 0)


def host() -> Host:
    """Kernel, rights, limits, ports and folders."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 1 << 30
    return Host(
        kernel=platform.release(),
        missing_features=tuple(name for name, attempt in _FEATURES.items() if not _works(attempt)),
        uid=os.geteuid(),
        open_files=unlimited if soft == resource.RLIM_INFINITY else soft,
        open_files_most=unlimited if hard == resource.RLIM_INFINITY else hard,
        ports=tuple(port(number, option) for number, option in _PORTS),
        folders=tuple(_folders()),
    )


def port(number: int, option: str) -> Port:
    """A port, tried by listening on it for a moment, on this machine's own address only."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
            listener.listen(1)
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            return Port(number, option, "another program listens on it" if taken else str(exc.strerror).lower())
    return Port(number, option)


def _folders() -> Iterator[Folder]:
    here = Path.cwd()
    places = (
        (here / "model_dir", "models that are converted"),
        (here / "profiled_data", "profiles"),
        (here / "reports", "reports"),
        (Path(tempfile.gettempdir()), "temporary files"),
    )
    for path, purpose in places:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        yield Folder(str(path), purpose, existing.is_dir() and os.access(existing, os.W_OK | os.X_OK))


def _distributions() -> Iterator[tuple[str, str]]:
    for name in _ONNXRUNTIMES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _uid(folder: Path) -> int:
    try:
        return folder.stat().st_uid
    except OSError:  # it has ended meanwhile
        return -1


def _is_daemon(folder: Path) -> bool:
    """Whether it was started as one; the same program without `-d` or `-f` asks a daemon."""
    return any(re.fullmatch(r"-[a-zA-Z]*[df][a-zA-Z]*", word) for word in read_text(folder / "cmdline").split("\0")[1:])


def _try_memfd() -> None:
    os.close(os.memfd_create("efserve-doctor"))


def _try_seqpacket() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


def _try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


_FEATURES: dict[str, Callable[[], None]] = {
    "anonymous shared memory (memfd_create)": _try_memfd,
    "SOCK_SEQPACKET sockets": _try_seqpacket,
    "process descriptors (pidfd_open)": _try_pidfd,
}


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
