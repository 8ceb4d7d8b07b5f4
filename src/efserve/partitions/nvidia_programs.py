"""NVIDIA's two programs for MPS, run as child processes that are never waited for without a deadline."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from efserve.errors import MpsFailed, MpsHangs

_KILLED_S = 1.0  # for a killed program to have gone


@dataclass(frozen=True, slots=True)
class NvidiaPrograms:
    """Names on PATH, or paths; how long each call of them may take."""

    smi: str = "nvidia-smi"
    control: str = "nvidia-cuda-mps-control"
    deadline_s: float = 20.0

    def found(self) -> "NvidiaPrograms":
        """The same with paths; MpsFailed with what to do where a program is missing."""
        smi, control = shutil.which(self.smi), shutil.which(self.control)
        if smi is None:
            raise MpsFailed(
                f"no {self.smi} on this machine: MPS needs an NVIDIA GPU and its driver; efserve runs on the CPU "
                "without it"
            )
        if control is None:
            raise MpsFailed(
                f"no {self.control} on this machine: install the part of NVIDIA's driver that has it (on Debian: "
                "nvidia-cuda-mps)"
            )
        return replace(self, smi=smi, control=control)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended and what it said."""

    code: int
    output: str


async def run_program(
    command: Sequence[str],
    deadline_s: float,
    *,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> Ended:
    """Runs a program to its end; what it prints goes to the file `output`, or into the answer.

    Raises MpsHangs where the deadline comes first; the program has been sent SIGKILL by then, which a driver that hangs
    can keep it from obeying. Raises MpsFailed where it cannot be started at all.
    """
    with ExitStack() as stack:
        try:
            # Into memory or a file, for a daemon that the program leaves behind may hold a pipe for ever.
            sink = output.open("w+b") if output else os.fdopen(os.memfd_create("output"), "w+b")
            stack.enter_context(sink)
            process = _started(command, stdin, environment, sink)
            pidfd = os.pidfd_open(process.pid)
        except OSError as exc:
            raise MpsFailed(f"cannot run {command[0]}: {exc.strerror}") from exc
        stack.callback(os.close, pidfd)
        try:
            if not await _is_readable(pidfd, deadline_s):
                said = " ".join((Path(command[0]).name, *command[1:]))
                raise MpsHangs(f"{said} does not end within {deadline_s:g} s")
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await _is_readable(pidfd, _KILLED_S)
                process.poll()
        sink.seek(0)
        return Ended(process.returncode, sink.read().decode(errors="replace"))


def _started(
    command: Sequence[str], stdin: str, environment: Mapping[str, str] | None, sink: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """By vfork: the fork of an event loop with much memory would stop it for tens of milliseconds."""
    question, writer = os.pipe()
    try:
        os.write(writer, stdin.encode())  # a line fits a pipe; that a program ends before it reads it is no error
        os.close(writer)
        return subprocess.Popen(
            command,
            stdin=question,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal does not reach it, nor a daemon that it starts
        )
    finally:
        os.close(question)


async def _is_readable(descriptor: int, deadline_s: float) -> bool:
    """Waits for a process by its pidfd; False when the deadline came first."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(deadline_s):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True
