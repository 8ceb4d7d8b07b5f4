"""What a running MPS daemon is asked and answers, as values; every question has a deadline, for daemons can hang.

The formats are those of NVIDIA's documents ("Multi-Process Service": Tools and Interface Reference, Client Early
Termination); none was seen on a GPU by this project.
"""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from efserve.errors import MpsFailed, MpsHangs
from efserve.partitions.nvidia_programs import NvidiaPrograms, run_nvidia


class ServerStatus(Enum):
    """What `get_server_status` says of a server; OTHER is on its way between the two, or says what nobody knows."""

    ACTIVE = "ACTIVE"
    FAULT = "FAULT"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class ListedClient:
    """A line of the daemon's `ps`."""

    pid: int
    server_pid: int
    device: str
    command: str


class MpsControl:
    """The daemon of one pipe directory. Raises MpsHangs where it does not answer in time, MpsFailed where none is."""

    def __init__(self, programs: NvidiaPrograms, pipe_directory: Path) -> None:
        self.pipe_directory = pipe_directory
        self._programs = programs

    def __repr__(self) -> str:
        return f"<MpsControl {self.pipe_directory}>"

    async def servers(self) -> tuple[int, ...]:
        """Process ids of the daemon's servers, one per user; none before its first client."""
        return parse_pids(await self._ask("get_server_list"))

    async def server_status(self, server_pid: int) -> ServerStatus:
        """Whether a server takes clients."""
        return parse_status(await self._ask(f"get_server_status {server_pid}"))

    async def clients(self, server_pid: int) -> tuple[int, ...]:
        """Process ids of the clients of a server."""
        return parse_pids(await self._ask(f"get_client_list {server_pid}"))

    async def all_clients(self) -> dict[int, tuple[int, ...]]:
        """Process ids of clients by server."""
        return {server: await self.clients(server) for server in await self.servers()}

    async def listed(self) -> tuple[ListedClient, ...]:
        """All clients with their programs and devices, from `ps`."""
        return parse_ps(await self._ask("ps"))

    async def terminate_client(self, server_pid: int, client_pid: int) -> None:
        """Takes a client's work off the GPU, after which it may be killed without harm to the others."""
        await self._ask(f"terminate_client {server_pid} {client_pid}")

    async def quit(self) -> None:
        """Asks the daemon to end, which may take longer than its answer."""
        await self._ask("quit")

    async def _ask(self, question: str) -> str:
        try:
            ended = await run_nvidia(
                [self._programs.control],
                self._programs.deadline_s,
                stdin=f"{question}\n",
                environment={**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe_directory)},
            )
        except MpsHangs as exc:
            raise MpsHangs(
                f"the MPS daemon in {self.pipe_directory} does not answer '{question}' within "
                f"{self._programs.deadline_s:g} s"
            ) from exc
        if ended.code != 0:
            said = " ".join(ended.output.split()) or f"exit code {ended.code}"
            raise MpsFailed(f"the MPS daemon in {self.pipe_directory} refuses '{question}': {said}")
        return ended.output


def parse_pids(text: str) -> tuple[int, ...]:
    """Process ids, one to a line; lines that are none are messages for people."""
    return tuple(int(line) for line in map(str.strip, text.splitlines()) if line.isdecimal())


def parse_status(text: str) -> ServerStatus:
    """The status word of `get_server_status`, wherever in the answer it stands."""
    words = text.upper().replace(":", " ").split()
    if "FAULT" in words:
        return ServerStatus.FAULT
    return ServerStatus.ACTIVE if "ACTIVE" in words else ServerStatus.OTHER


def parse_ps(text: str) -> tuple[ListedClient, ...]:
    """The table of `ps`: a head of column names (PID ID SERVER DEVICE NAMESPACE COMMAND), then a line per client."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    heads = [at for at, words in enumerate(lines) if "PID" in words and "SERVER" in words]
    if not heads:
        return ()
    head = lines[heads[0]]
    rows = [dict(zip(head, words, strict=False)) for words in lines[heads[0] + 1 :]]
    return tuple(
        ListedClient(int(row["PID"]), int(row["SERVER"]), row.get("DEVICE", ""), row.get("COMMAND", ""))
        for row in rows
        if row.get("PID", "").isdecimal() and row.get("SERVER", "").isdecimal()
    )
