"""A partition of the host CPU made real: thread counts by environment before the start, affinity from within.

Owns nothing that outlives the process that it is applied to.
"""

import os
from pathlib import Path

from efserve.errors import LoadFailed
from efserve.partition import Obtained, Partition

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def environment(partition: Partition, *, spin: bool = False) -> dict[str, str]:
    """Environment of a process that shall live in the partition: libraries start no more threads than it has.

    Unless they may `spin`, OpenMP's threads sleep while they wait for one another. Spinning, they hold up the very
    thread that they wait for when anything else runs on their cores: a batch of 0.2 ms then takes 100 ms. Where the
    cores are the partition's own, each of them keeps to one.
    """
    threads = str(max(1, partition.threads))
    waiting = {} if spin else {"OMP_WAIT_POLICY": "PASSIVE"}
    cores = ",".join(f"{{{core}}}" for core in partition.thread_cores)
    bound = {"OMP_PROC_BIND": "true", "OMP_PLACES": cores} if cores else {}
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, threads), **waiting, **bound}


def enter(partition: Partition) -> None:
    """Pin this process to the partition's cores (to none where it lists none); LoadFailed where that is impossible.

    Threads that start later inherit the affinity. numpy's have started with its import, so each thread is pinned.
    """
    if not partition.cores:
        return
    wanted, allowed = set(partition.cores), os.sched_getaffinity(0)
    refusal = (
        f"cannot run on cores {_listed(wanted)}: this process may use {_listed(allowed)}; choose among those or leave "
        "the cores empty"
    )
    try:
        for thread in _threads():
            os.sched_setaffinity(thread, wanted)
    except (OSError, ValueError) as error:
        raise LoadFailed(refusal) from error
    if os.sched_getaffinity(0) != wanted:  # the kernel drops cores that do not exist without a word
        raise LoadFailed(refusal)


def obtained() -> Obtained:
    """What this process has got, read back from the kernel for all its threads."""
    cores: set[int] = set()
    threads = 0
    for thread in _threads():
        try:
            cores |= os.sched_getaffinity(thread)
        except ProcessLookupError:  # a thread that has just ended
            continue
        threads += 1
    return Obtained(cores=tuple(sorted(cores)), threads=threads)


def _threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _listed(cores: set[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
