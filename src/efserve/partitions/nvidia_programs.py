"""NVIDIA's two programs for MPS: where they are, and what they say, with their failures as errors."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efserve.errors import MpsFailed, MpsHangs
from efserve.programs import run_program


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
class Said:
    """How a program ended and what it said."""

    code: int  # negative: the signal that killed it
    output: str


async def run_nvidia(
    command: Sequence[str],
    deadline_s: float,
    *,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> Said:
    """Runs a program to its end; what it prints goes to the file `output` as well.

    Raises MpsHangs where the deadline comes first; the program has been sent SIGKILL by then, which a driver that hangs
    can keep it from obeying. Raises MpsFailed where it cannot be started at all.
    """
    ended = await run_program(command, deadline_s, stdin=stdin, environment=environment, output=output)
    if ended.timed_out:
        raise MpsHangs(f"{' '.join((Path(command[0]).name, *command[1:]))} {ended.problem}")
    if ended.code is None:
        raise MpsFailed(f"{command[0]} {ended.problem}")
    return Said(ended.code, f"{ended.stdout}{ended.stderr}")
