"""torch's calls to the GPU: one stream, events, graphs, page-locked memory. Never run on hardware so far."""

from collections.abc import Callable, Sequence

import torch

from efserve.errors import LoadFailed
from efserve.partition import Partition


class CudaStage:
    """The process's first GPU with a stream of its own, made current for this thread."""

    def __init__(self, partition: Partition) -> None:
        if not torch.cuda.is_available():
            built = "" if torch.version.cuda else f"; this torch {torch.__version__} was built without CUDA"
            raise LoadFailed(f"a GPU was asked for, but torch finds none{built}")
        self.device = torch.device("cuda", 0)
        torch.cuda.set_device(self.device)
        if partition.memory_limit_bytes:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, partition.memory_limit_bytes / total), self.device)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch
        torch.cuda.set_stream(self._stream)
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch
        self._marks = (first, second)
        self._pool = torch.cuda.graph_pool_handle()  # graphs never run side by side, so they share their memory

    def begin(self) -> None:
        """Note the device's time."""
        self._marks[0].record(self._stream)

    def end(self) -> None:
        """Note it behind."""
        self._marks[1].record(self._stream)

    def wait(self) -> int:
        """Wait for the stream; nanoseconds between the notes."""
        self._stream.synchronize()
        return int(1e6 * self._marks[0].elapsed_time(self._marks[1]))

    def synchronize(self) -> None:
        """Wait for everything on the device; RuntimeError where it is lost."""
        torch.cuda.synchronize(self.device)

    def capture(self, work: Callable[[], Sequence[torch.Tensor]]) -> tuple[Callable[[], None], Sequence[torch.Tensor]]:
        """A graph of the work, and its outputs."""
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = work()
        return graph.replay, outputs


class TorchLocker:
    """Page-locks memory by torch's CUDA runtime."""

    def lock(self, address: int, size_bytes: int) -> None:
        """OSError where the runtime refuses."""
        self._check("cudaHostRegister", address, size_bytes, 0)

    def unlock(self, address: int) -> None:
        """Undo `lock`."""
        self._check("cudaHostUnregister", address)

    def _check(self, function: str, *arguments: int) -> None:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch
        result = getattr(runtime, function)(*arguments)
        if int(result):
            raise OSError(f"{function}: {result}")
