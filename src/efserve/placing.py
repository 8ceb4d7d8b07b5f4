"""Places what models ask for on the devices of a machine: a partition per instance. Pure.

CPU: a share is whole cores that no other partition has; they lie on as few NUMA nodes as can be. Models without a share
run on the cores that the shares leave, so that they disturb none; where nobody has a share, nothing is pinned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from efserve.asks import Ask
from efserve.errors import LoadFailed, UsageError
from efserve.partition import CPU, Partition
from efserve.room import Room

_TOLD_PCT = 5.0  # a share whose rounding to whole cores differs by more than this from what was asked is told

Cores = tuple[int, ...]
Held = Mapping[str, tuple[Partition, ...]]  # model -> the partitions of its instances


@dataclass(frozen=True, slots=True)
class Placed:
    """The partitions of each model, in the order of its asks, and what the user should know of them."""

    partitions: dict[str, tuple[Partition, ...]]
    notes: tuple[str, ...] = ()


def place(asks: Sequence[Ask], room: Room, held: Held | None = None) -> Placed:
    """A partition for each ask, beside what other models hold already, which stays as it is.

    Raises UsageError, with the models and the sum, where a device does not have so much to give.
    """
    held = held or {}
    _check_sums(asks, room, held)
    usable = tuple(core for node in room.usable for core in node)
    shared = [ask for ask in asks if ask.device == CPU and ask.share_pct]
    others = list(dict.fromkeys(ask.model for ask in asks if ask not in shared))
    given = _assign(shared, others, room, held)
    notes = _rounded(shared, given, len(usable))
    before = [cores for parts in held.values() for part in parts if _has_cores(part) for cores in part.cores]
    is_pinned = bool(given or before)
    rest = tuple(sorted(set(usable) - {core for cores in given for core in cores} - set(before))) if is_pinned else ()
    if is_pinned and others and not rest:
        raise UsageError(
            f"the shares take all {len(usable)} cores and leave none for {_listed(others)}: lower a share, or give "
            f"a share with --share {others[0]}=PCT"
        )
    instances = Counter(ask.model for ask in asks)
    partitions: dict[str, list[Partition]] = {ask.model: [] for ask in asks}
    waiting = iter(given)
    for ask in asks:
        if ask.device == CPU and ask.share_pct:
            cores = next(waiting)
            threads = len(cores)
        else:
            cores = rest
            threads = ask.threads or max(1, len(rest or usable) // instances[ask.model])
        partitions[ask.model].append(_partition(ask, cores, threads, len(usable), room))
    return Placed({model: tuple(parts) for model, parts in partitions.items()}, notes)


def equip(partition: Partition, pipe_directory: str) -> Partition:
    """The partition with the means to hold it: MPS where `pipe_directory` is that of a daemon for its GPU.

    Without a daemon a share is held by a green context. Raises LoadFailed for a memory limit, which needs MPS.
    """
    if not partition.is_gpu:
        return partition
    if pipe_directory:  # also without a share: where there is a daemon, every process may have to go through it
        return replace(partition, means="mps", pipe_directory=pipe_directory)
    if partition.memory_limit_bytes:
        raise LoadFailed(
            f"its memory limit on {partition.device} needs MPS, which does not run for that GPU: start it with "
            "`efserve mps start`, or leave the limit away"
        )
    return replace(partition, means="green" if 0 < partition.share_pct < 100 else "", pipe_directory="")


def _partition(ask: Ask, cores: Cores, threads: int, cpu_units: int, room: Room) -> Partition:
    gpu = room.gpu(ask.device)
    units = cpu_units if gpu is None else gpu.sm_count
    return Partition(ask.device, threads, cores, ask.share_pct, ask.memory_limit_bytes, units=units)


def _check_sums(asks: Iterable[Ask], room: Room, held: Held) -> None:
    """UsageError where the shares of a device are more than the device."""
    claims: dict[str, list[tuple[str, float]]] = {}
    for model, parts in held.items():
        for part in parts:
            claims.setdefault(part.device, []).append((model, part.share_pct))
    for ask in asks:
        claims.setdefault(ask.device, []).append((ask.model, ask.share_pct))
    for device, shares in claims.items():
        total = sum(pct for _, pct in shares)
        if total > 100 + 1e-6:
            sum_of = " + ".join(f"{model} {pct:g} %" for model, pct in shares if pct)
            raise UsageError(f"the shares of {_name(device, room)} are {sum_of} = {total:g} %, more than all of it")


def _assign(shared: Sequence[Ask], others: Sequence[str], room: Room, held: Held) -> list[Cores]:
    """The cores of each share: the largest first, each on the node that it fills best."""
    if not shared:
        return []
    busy = {core for parts in held.values() for part in parts for core in part.cores}
    loose = [model for model, parts in held.items() if any(not part.cores for part in parts)]
    free = [] if loose else [[core for core in node if core not in busy] for node in room.usable]
    total, most = sum(map(len, room.usable)), sum(map(len, free))
    counts = _core_counts([ask.share_pct for ask in shared], total, most - bool(others) * (most > len(shared)))
    if sum(counts) > most:
        names = _listed(list(dict.fromkeys(ask.model for ask in shared)))
        running = f", for {_listed(list(held))} run on the others" if held else ""
        left = "1 is" if most == 1 else f"{most} are"
        raise UsageError(
            f"the shares of {names} need {sum(counts)} of {total} cores, at least one each, and {left} free"
            f"{running}: ask for fewer shares, or for all of them when the server starts"
        )
    given: dict[int, Cores] = {}
    for index in sorted(range(len(shared)), key=lambda index: -counts[index]):
        given[index] = _take(free, counts[index])
    return [given[index] for index in range(len(shared))]


def _core_counts(shares_pct: Sequence[float], total: int, most: int) -> list[int]:
    """Whole cores of each share of `total`: at least one, `most` in all if possible, the largest remainders up."""
    exact = [pct * total / 100 for pct in shares_pct]
    counts = [max(1, int(value + 1e-9)) for value in exact]
    wanted = min(most, int(sum(exact) + 0.5))
    for index in sorted(range(len(exact)), key=lambda index: counts[index] - exact[index]):
        if sum(counts) < wanted and counts[index] < exact[index]:
            counts[index] += 1
    return counts


def _take(free: list[list[int]], count: int) -> Cores:
    """Remove `count` cores: of the node that has just enough, or of as few nodes as possible."""
    taken: list[int] = []
    while len(taken) < count:
        left = count - len(taken)
        node = min((node for node in free if len(node) >= left), key=len, default=None)
        node = max(free, key=len) if node is None else node
        taken += node[:left]
        del node[:left]
    return tuple(sorted(taken))


def _has_cores(partition: Partition) -> bool:
    """Whether its cores are its own."""
    return partition.device == CPU and partition.share_pct > 0


def _rounded(shared: Sequence[Ask], given: Sequence[Cores], total: int) -> tuple[str, ...]:
    """What the rounding to whole cores has changed."""
    notes = []
    for ask, cores in zip(shared, given, strict=True):
        got_pct = 100 * len(cores) / total
        if abs(got_pct - ask.share_pct) > _TOLD_PCT:
            whole = f"{len(cores)} core{'s' * (len(cores) > 1)}"
            notes.append(
                f"{ask.model} asked for {ask.share_pct:g} % of the CPU and gets {whole} of {total}, {got_pct:g} %: a "
                "share of the CPU is whole cores"
            )
    return tuple(dict.fromkeys(notes))


def _name(device: str, room: Room) -> str:
    gpu = room.gpu(device)
    return gpu.name if gpu else "the CPU" if device == CPU else device


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
