"""What a machine has to give to workers: cores by NUMA node, and GPUs. A value, and the one of this machine."""

from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from efserve.devices.cpu import host_cpu
from efserve.devices.gpu import GpuFacts, MigSlice, gpu_facts, is_named
from efserve.errors import LoadFailed

DRIVER_DEADLINE_S = 10.0  # for the driver of the GPUs to tell of them


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that a worker may be given, or a slice of one."""

    index: int
    uuid: str
    sm_count: int = 0  # 0: not known
    slice_index: int | None = None  # of a MIG slice

    @property
    def name(self) -> str:
        """As `--share` calls it: `gpu0`, and a slice of it `gpu0:1`."""
        return f"gpu{self.number}"

    @property
    def number(self) -> str:
        """The index as people write it: `0`, and of a slice `0:1`."""
        return f"{self.index}" if self.slice_index is None else f"{self.index}:{self.slice_index}"


@dataclass(frozen=True, slots=True)
class Room:
    """What this machine has to give to workers.

    `nodes`: the cores of each NUMA node, in the order in which they are to be given out: cores that share a physical
    one side by side.
    """

    nodes: tuple[tuple[int, ...], ...]
    core_limit: int = 0  # cores that may be busy at once, by a quota of processor time; 0: all of them
    gpus: tuple[Gpu, ...] = ()

    @property
    def usable(self) -> tuple[tuple[int, ...], ...]:
        """The nodes with no more cores in all than may be busy at once."""
        left, nodes = self.core_limit or sum(map(len, self.nodes)), []
        for cores in self.nodes:
            nodes.append(cores[:left])
            left -= len(nodes[-1])
        return tuple(node for node in nodes if node)

    def gpu(self, device: str) -> Gpu | None:
        """The GPU of that name, index or uuid."""
        return next((gpu for gpu in self.gpus if is_named(device, gpu.number, gpu.uuid)), None)


def room_here(deadline_s: float = DRIVER_DEADLINE_S) -> Room:
    """The room of this machine, within the affinity and the control groups of this process.

    Raises LoadFailed where the driver of the GPUs does not tell of them in time.
    """
    host = host_cpu()
    place_of = {core: place for place, group in enumerate(host.siblings) for core in group}
    nodes = (sorted(node.cores, key=lambda core: (place_of.get(core, core), core)) for node in host.numa_nodes)
    devices = []
    for gpu in _asked(deadline_s).gpus:
        for device in gpu.mig_slices if gpu.mig_enabled else (gpu,):
            slice_index = device.index if isinstance(device, MigSlice) else None
            devices.append(Gpu(gpu.index, device.uuid, device.sm_count or 0, slice_index))
    return Room(tuple(map(tuple, nodes)), host.usable_cores, tuple(devices))


def _asked(deadline_s: float) -> GpuFacts:
    """What the driver tells; asked by a thread of its own, for a driver that hangs never comes back."""
    answer: Future[GpuFacts] = Future()

    def ask() -> None:
        try:
            answer.set_result(gpu_facts())
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is raised by who waits
            answer.set_exception(exc)

    Thread(target=ask, name="gpus", daemon=True).start()
    try:
        return answer.result(deadline_s)
    except TimeoutError as exc:
        raise LoadFailed(
            f"the NVIDIA driver did not tell of this machine's GPUs within {deadline_s:g} s; see `efserve doctor`"
        ) from exc
