"""How long a thread that wakes up waits for a core that another computes on, by the slices of the other.

    python benchmarks/slices.py [--wakes 1500]

One process computes without end; another, on the same core, sleeps for 1.5 to 3.3 ms and then works for some time, as a
gateway or a client under load does. The first has the kernel's usual slices, then the long ones of a worker whose
batches take long. Prints percentiles of the time from the end of the sleep until it runs; "beside nobody" is the
reference.
"""

import argparse
import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import numpy as np

from efserve.worker.slices import LONG_MS, set_slices, slice_ms

_SLEEPS_S = [0.0015 + 0.0003 * step for step in range(7)]
WORKS_MS = (0.1, 1.0)
SETTLED_S = 0.2


def compute(core: int, slices_ms: float) -> None:
    """Without end."""
    os.setsid()
    os.sched_setaffinity(0, {core})
    set_slices(slices_ms)
    while True:
        pass


def wake(core: int, work_s: float, count: int, answer: Connection) -> None:
    """Sends for how long it waited after each sleep, ms."""
    os.sched_setaffinity(0, {core})
    waits_ms = []
    for number in range(count):
        sleep_s = _SLEEPS_S[number % len(_SLEEPS_S)]
        start_s = time.perf_counter()
        time.sleep(sleep_s)
        awake_s = time.perf_counter()
        waits_ms.append((awake_s - start_s - sleep_s) * 1e3)
        while time.perf_counter() - awake_s < work_s:
            pass
    answer.send(waits_ms)


def measure(core: int, work_ms: float, slices_ms: float | None, count: int) -> list[float]:
    """With another that computes in such slices; None: with no other."""
    other = None
    if slices_ms is not None:
        other = multiprocessing.Process(target=compute, args=(core, slices_ms), daemon=True)
        other.start()
        time.sleep(SETTLED_S)
    theirs, ours = multiprocessing.Pipe()
    wakes = multiprocessing.Process(target=wake, args=(core, work_ms / 1e3, count, theirs), daemon=True)
    wakes.start()
    waits_ms: list[float] = ours.recv()
    wakes.join()
    if other is not None:
        other.kill()
        other.join()
    return waits_ms


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wakes", type=int, default=1500, help="in each row")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    print(f"usual slices {slice_ms():g} ms; waits in ms{'':11}p50      p90      p99  longest")
    for work_ms in WORKS_MS:
        cases = (("nobody", None), ("usual slices", 0.0), (f"slices of {LONG_MS:g} ms", LONG_MS))
        for title, slices_ms in cases:
            waits_ms = measure(core, work_ms, slices_ms, options.wakes)
            figures = "".join(f"{value:9.2f}" for value in np.percentile(waits_ms, [50, 90, 99, 100]))
            print(f"works {work_ms:g} ms beside {title:18}{figures}", flush=True)


if __name__ == "__main__":
    main()
