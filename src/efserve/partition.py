"""A part of a device that a worker may be given, and what a worker finds that it has got."""

from dataclasses import dataclass

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Partition:
    """A share of one device, as asked for.

    On the CPU: `threads` engine threads, pinned to `cores` unless that is empty. On a GPU: `share_pct` percent of its
    SMs by `means`, for a process with `threads` threads on the host that is pinned to `cores` in the same way.
    """

    device: str = CPU  # or the uuid of a GPU or of a MIG slice
    threads: int = 1
    cores: tuple[int, ...] = ()
    share_pct: float = 0.0  # 0: no share was asked for, the process may use the whole device
    memory_limit_bytes: int = 0  # of the device's memory; 0: no limit
    means: str = ""  # of a share of a GPU: "mps" or "green" (a green context); empty: the whole device
    pipe_directory: str = ""  # of the device's MPS daemon, where that is the means
    units: int = 0  # cores or SMs of the whole device; 0: not known

    @property
    def is_gpu(self) -> bool:
        """True for anything but the host's CPU."""
        return self.device != CPU

    @property
    def thread_cores(self) -> tuple[int, ...]:
        """A core for each engine thread, the first for the one that runs the model; empty: threads go where they can.

        Only where the cores are the partition's own. A kernel wakes a thread where it finds an idle core, and takes
        those of a virtual machine that sleep for busy: two threads that have paused then share a core for many ms.
        """
        is_own = not self.is_gpu and self.share_pct > 0 and self.threads == len(self.cores) > 1
        return self.cores if is_own else ()

    def obtained_pct(self, obtained: "Obtained") -> float:
        """Share of the device that a worker has got, in percent; 0 where the size of the device is not known."""
        got = obtained.sm_count if self.is_gpu else len(obtained.cores)
        return 100 * got / self.units if self.units else 0.0


@dataclass(frozen=True, slots=True)
class Obtained:
    """What a worker found itself to have, read back in its own process when it had loaded its model."""

    cores: tuple[int, ...] = ()  # that its threads may run on, all together
    sm_count: int = 0  # SMs that it sees; 0: not on a GPU
    threads: int = 0  # of the process, the engine's among them
