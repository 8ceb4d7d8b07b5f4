"""What a worker was to get of its device and what it has got, as the frontends show it."""

from efserve.frontend.service import Placement
from efserve.partition import Obtained
from efserve.worker.handle import Worker, WorkerState


def placement_of(model: str, version: str, instance: int, worker: Worker) -> Placement:
    """The placement of a worker, whatever its state; before it is ready, nothing has been obtained."""
    partition = worker.spec.partition
    obtained = worker.facts.obtained if worker.facts else Obtained()
    return Placement(
        model=model,
        version=version,
        instance=instance,
        pid=worker.pid,
        state=worker.state.name,
        rss_bytes=worker.rss_bytes() if worker.state is WorkerState.READY else 0,
        cores=obtained.cores if partition.cores else (),
        device=partition.device,
        threads=partition.threads,
        process_threads=obtained.threads,
        share_pct=partition.share_pct,
        obtained_pct=partition.obtained_pct(obtained) if partition.share_pct else 0.0,
        sm_count=obtained.sm_count,
        means=partition.means,
        memory_limit_bytes=partition.memory_limit_bytes,
    )
