"""How a process gets into its partition and proves that it is there: the one door to all kinds of devices.

Before its start its environment, in it at first `enter`, when its model is loaded `obtained`. What was asked and what
was obtained are compared by `check`, which is pure.
"""

from efserve.errors import LoadFailed
from efserve.partition import Obtained, Partition
from efserve.partitions import cpu, gpu

_SLACK_SMS = {"mps": 2, "green": 8}  # by which the driver rounds: pairs of SMs; clusters of 8 from Hopper on
_SLACK = 0.02  # of all SMs, beside that


def environment(partition: Partition, *, spin: bool = False) -> dict[str, str]:
    """Environment of a process that shall live in the partition; engine threads may `spin` while they wait."""
    on_host = cpu.environment(partition, spin=spin)
    return gpu.environment(partition, on_host) if partition.is_gpu else on_host


def enter(partition: Partition) -> None:
    """Put this process into the partition; LoadFailed where that is impossible. Before any engine is loaded."""
    cpu.enter(partition)
    if partition.is_gpu:
        gpu.enter(partition)


def obtained(partition: Partition) -> Obtained:
    """What this process has got, read back from the kernel and the driver. After the model was loaded and warmed."""
    on_host = cpu.obtained()
    return gpu.obtained(partition, on_host) if partition.is_gpu else on_host


def check(partition: Partition, got: Obtained) -> None:
    """Raise LoadFailed, in one sentence, where a share has silently not been applied."""
    if partition.cores and set(got.cores) != set(partition.cores):
        raise LoadFailed(
            f"it was to run on cores {_listed(partition.cores)}, but its threads run on {_listed(got.cores)}: the "
            "model or its engine changes its own affinity, which a share forbids"
        )
    expected = partition.units * partition.share_pct / 100
    if not partition.means or not expected:
        return
    slack = _SLACK_SMS[partition.means] + _SLACK * partition.units
    if abs(got.sm_count - expected) > slack:
        held_by = "MPS" if partition.means == "mps" else "its green context"
        raise LoadFailed(
            f"it was to have {partition.share_pct:g} % of the {partition.units} SMs of {partition.device} by "
            f"{held_by}, but sees {got.sm_count}: the share was not applied; see `efserve doctor`"
        )


def _listed(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
