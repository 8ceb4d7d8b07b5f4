"""NVIDIA's two programs for MPS, run as child processes that are never waited for without a deadline."""

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from efserve.errors import MpsFailed, MpsHangs


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

    A program that leaves a daemon behind needs the file: the daemon may hold a pipe for ever. Raises MpsHangs where the
    deadline comes first; the program has been killed by then. Raises MpsFailed where it cannot be started at all.
    """
    sink = output.open("wb") if output else None
    question, writer = os.pipe()
    os.write(writer, stdin.encode())  # a line fits a pipe; that a program ends before it reads it is no error
    os.close(writer)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=question,
            stdout=sink or asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal does not reach it, nor a daemon that it starts
        )
    except OSError as exc:
        raise MpsFailed(f"cannot run {command[0]}: {exc.strerror}") from exc
    finally:
        os.close(question)
        if sink:
            sink.close()
    try:
        async with asyncio.timeout(deadline_s):
            said, _ = await process.communicate()
    except TimeoutError as exc:
        raise MpsHangs(
            f"{' '.join((Path(command[0]).name, *command[1:]))} does not end within {deadline_s:g} s"
        ) from exc
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Ended(process.returncode or 0, (said or b"").decode(errors="replace"))
