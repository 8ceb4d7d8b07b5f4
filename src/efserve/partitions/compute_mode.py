"""The GPUs as `nvidia-smi` lists them, and their compute mode: set while MPS runs, kept on disk until it is restored.

The mode that a GPU had is written to the run directory before it is changed, so that whoever comes next can restore
it when this process is killed.
"""

import logging
import os
from dataclasses import dataclass

from efserve.devices.gpu import is_named
from efserve.errors import MpsFailed, UsageError
from efserve.partitions.mps_directory import RunDirectory
from efserve.partitions.nvidia_programs import NvidiaPrograms, run_nvidia

log = logging.getLogger(__name__)

EXCLUSIVE = "EXCLUSIVE_PROCESS"
_MODES = ("DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", EXCLUSIVE)
_QUERY = ("--query-gpu=index,uuid,compute_mode,mig.mode.current", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class ListedGpu:
    """A GPU as `nvidia-smi` lists it."""

    index: int
    uuid: str
    compute_mode: str  # in the words that nvidia-smi -c takes
    is_mig: bool


async def list_gpus(programs: NvidiaPrograms) -> tuple[ListedGpu, ...]:
    """All GPUs of this machine; MpsFailed where there is none or nvidia-smi does not answer."""
    try:
        ended = await run_nvidia([programs.smi, *_QUERY], programs.deadline_s)
    except MpsFailed as exc:
        raise MpsFailed(f"{exc}; try it by hand: the driver does not answer") from exc
    gpus = parse_gpus(ended.output) if ended.code == 0 else ()
    if not gpus:
        said = " ".join(ended.output.split())
        raise MpsFailed(f"nvidia-smi finds no GPU ({said or 'it lists none'}); MPS needs one")
    return gpus


def parse_gpus(text: str) -> tuple[ListedGpu, ...]:
    """Lines "index, uuid, compute mode, MIG mode" of `nvidia-smi --query-gpu`; other lines are warnings for people."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    return tuple(
        ListedGpu(int(row[0]), row[1], row[2].upper(), row[3] == "Enabled")
        for row in rows
        if len(row) == 4 and row[0].isdecimal() and row[1].startswith("GPU-")
    )


def choose(gpus: tuple[ListedGpu, ...], wanted: tuple[str, ...]) -> tuple[ListedGpu, ...]:
    """The GPUs that are named by index or uuid, or all, without those in MIG mode; UsageError for unknown ones."""
    chosen = [gpu for gpu in gpus if not wanted or any(is_named(name, f"{gpu.index}", gpu.uuid) for name in wanted)]
    unknown = [name for name in wanted if not any(is_named(name, f"{gpu.index}", gpu.uuid) for gpu in chosen)]
    if unknown:
        known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
        raise UsageError(f"there is no GPU '{unknown[0]}'; this machine has {known}")
    for gpu in chosen:
        if gpu.is_mig:
            log.warning("%s is in MIG mode and is left alone", gpu.uuid)
    free = tuple(gpu for gpu in chosen if not gpu.is_mig)
    if not free:
        raise MpsFailed("every GPU is in MIG mode, which efserve leaves alone; MPS needs one that is not")
    return free


class ComputeModes:
    """Sets and restores compute modes; what was there before is kept in the run directory."""

    def __init__(self, programs: NvidiaPrograms, directory: RunDirectory) -> None:
        self._programs = programs
        self._directory = directory

    async def make_exclusive(self, gpu: ListedGpu) -> bool:
        """Keeps programs that miss the daemon off the GPU, where this process may; True where the mode was changed."""
        if os.geteuid() != 0 or gpu.compute_mode == EXCLUSIVE:
            return False
        self._directory.keep_mode(gpu.uuid, gpu.compute_mode)
        if await self._set(gpu.uuid, EXCLUSIVE):
            return True
        log.warning(
            "cannot set the compute mode of %s; MPS works without it, but a program that misses the daemon may share "
            "the GPU",
            gpu.uuid,
        )
        await self.restore(gpu.uuid)
        return False

    async def restore(self, uuid: str) -> bool:
        """Gives a GPU the mode back that was kept for it; False where that fails and is still to be done."""
        mode = self._directory.kept_mode(uuid)
        if not mode:
            return True
        if mode not in _MODES:
            log.warning("the kept compute mode of %s is unreadable; it becomes DEFAULT", uuid)
            mode = "DEFAULT"
        if not await self._set(uuid, mode):
            log.warning("cannot restore the compute mode of %s; as root: nvidia-smi -i %s -c %s", uuid, uuid, mode)
            return False
        self._directory.forget_mode(uuid)
        return True

    async def _set(self, uuid: str, mode: str) -> bool:
        try:
            ended = await run_nvidia([self._programs.smi, "-i", uuid, "-c", mode], self._programs.deadline_s)
        except MpsFailed as exc:
            log.warning("%s", exc)
            return False
        return ended.code == 0
