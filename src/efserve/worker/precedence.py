"""How much of the processors a worker gets while it loads in place of one that serves: what all others leave over.

By two means, since each counts in other surroundings only (sched(7)): the scheduling class SCHED_IDLE within a control
group, and the weight of the autogroup, which the kernel makes of each session where no control group shares out the
processors. Where the kernel allows neither, a worker loads as fast as any.
"""

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from efserve.worker.slices import set_policy

_WAY_S = 8.0  # for which a load gives way at most
# (weight of the autogroup as a nice value, part of that time): a load for which nothing is left over gets ever more.
_STEPS = ((19, 0.25), (10, 0.25), (5, 0.5))
_AGAIN_S = 0.1  # between two changes of autogroups that the kernel allows to users
_CAP_SYS_NICE = 1 << 23
_ALL_USERS = ["0", "0", "4294967295"]  # the user namespace of the machine itself


async def give_way(pid: int, settled: asyncio.Event, at_most_s: float) -> None:
    """Have a child process, which leads a session, give way to all others until `settled`, or for some seconds.

    It takes its full part of the processors again when this returns.
    """
    way_s = min(at_most_s, _WAY_S)
    own_class = os.sched_getscheduler(0)
    is_idle = _is_allowed_back(own_class) and _set_class(pid, os.SCHED_IDLE)
    has_weight = _autogroup(pid) not in ("", _autogroup(os.getpid()))
    try:
        for nice, part in _STEPS if is_idle or has_weight else ():
            if has_weight:
                await _set_weight(pid, nice)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(part * way_s):
                    await settled.wait()
                    return
    finally:
        if is_idle:
            _set_class(pid, own_class)
        if has_weight:
            await _set_weight(pid, 0)


def _is_allowed_back(own_class: int) -> bool:
    """Whether the kernel lets this process take another out of SCHED_IDLE again."""
    if own_class not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    if limit == resource.RLIM_INFINITY or limit >= 20 - os.getpriority(os.PRIO_PROCESS, 0):
        return True
    effective = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    is_able = int(effective, 16) & _CAP_SYS_NICE
    return bool(is_able) and Path("/proc/self/uid_map").read_text().split() == _ALL_USERS


def _set_class(pid: int, policy: int) -> bool:
    """For each thread of a process and of those that it started; False where the kernel refuses, or nothing changes."""
    changed = False
    while others := [thread for thread in _threads(pid) if _class_of(thread) not in (policy, None)]:
        for thread in others:  # and again, for those that start meanwhile
            try:
                set_policy(thread, policy)
            except ProcessLookupError:
                continue
            except OSError:
                return changed
            changed = True
    return changed


def _class_of(thread: int) -> int | None:
    try:
        return os.sched_getscheduler(thread)
    except ProcessLookupError:
        return None


def _threads(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield int(task.name)
            for child in (task / "children").read_text().split():
                yield from _threads(int(child))


def _autogroup(pid: int) -> str:
    """Its name; empty where there are none."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().partition(" ")[0]
    except OSError:
        return ""


async def _set_weight(pid: int, nice: int) -> None:
    """Of the autogroup of a process, as soon as the kernel takes it."""
    while not _takes_weight(pid, nice):  # noqa: ASYNC110 - somebody has changed one a moment ago, and nobody tells
        await asyncio.sleep(_AGAIN_S)


def _takes_weight(pid: int, nice: int) -> bool:
    """False where it wants to be asked again; for a process that has ended there is nothing to set."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
