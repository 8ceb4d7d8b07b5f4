"""A process in a partition, as efserve puts its workers there: says what it got, and measures when it is told to.

python -m gpu_proof_parts.share_client PARTITION SIDE SECONDS     (PARTITION as JSON)
"""

import json
import os
import sys
from time import perf_counter

from efserve.partition import Partition
from efserve.partitions import entry


def main(partition: Partition, side: int, measure_s: float) -> None:
    entry.enter(partition)
    import torch

    torch.set_num_threads(1)
    device = "cuda" if partition.is_gpu else "cpu"
    dtype = torch.float16 if partition.is_gpu else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def work() -> None:
        for _ in range(4):
            torch.matmul(a, b, out=out)
        if partition.is_gpu:
            torch.cuda.synchronize()

    work()
    got = entry.obtained(partition)
    units = torch.cuda.get_device_properties(0).multi_processor_count if partition.is_gpu else len(got.cores)
    say(pid=os.getpid(), obtained=got.sm_count or len(got.cores), torch_sees=units)
    for _ in sys.stdin:  # each line starts one measurement
        runs, start = 0, perf_counter()
        while perf_counter() - start < measure_s:
            work()
            runs += 1
        say(tflops=4 * runs * 2 * side**3 / (perf_counter() - start) / 1e12)


def say(**values: float) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(Partition(**json.loads(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))
