"""CPU time and memory of processes on this machine, read from /proc: tens of microseconds each."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FORWARDERS = ("docker-proxy", "rootlessport", "slirp4netns", "pasta", "sshd", "ssh")  # they listen for others


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used until now."""

    cpu_s: float
    rss_bytes: float


@dataclass(frozen=True, slots=True)
class ServerPids:
    """The processes of a server on this machine: those that listen, and those that they have started."""

    gateway: tuple[int, ...]
    workers: tuple[int, ...]


def usage(pids: Iterable[int]) -> Usage:
    """CPU time and resident memory of those that still live; memory that they share counts for each."""
    ticks, pages = 0, 0
    for pid in pids:
        try:
            # after the name, which is in parentheses and may hold any character: the fields from the third on
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        pages += int(fields[21])
    return Usage(ticks / _TICKS_PER_S, pages * _PAGE_BYTES)


def with_children(pids: Sequence[int], but: Sequence[int] = ()) -> ServerPids | None:
    """A server by its listening processes; None where one of them is among `but`, or has ended."""
    workers: list[int] = []
    try:
        for pid in pids:
            workers += [child.pid for child in psutil.Process(pid).children(recursive=True) if child.pid not in pids]
    except psutil.Error:
        return None
    if not pids or set(but) & {*pids, *workers}:
        return None
    return ServerPids(tuple(pids), tuple(dict.fromkeys(workers)))


def listeners(host: str, port: int) -> list[int]:
    """The processes that listen on a loopback address; none where they cannot be seen, or only pass bytes on."""
    if not is_loopback(host):
        return []
    try:
        found = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None
        }
        names = {psutil.Process(pid).name() for pid in found}
    except (psutil.Error, OSError):
        return []
    return [] if names & set(_FORWARDERS) else sorted(found)


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
