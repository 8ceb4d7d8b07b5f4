"""How evenly two cores compute: the part of time in which a loop gets far less done than usual, alone and in pairs.

    python benchmarks/spells.py [--seconds 20]

Counts what a loop in Python gets done in windows of 10 ms on one core, then on two cores at once, each against the
median of one alone. On a virtual machine whose cores share a physical one with others, spells of half the speed show
here and nowhere else: they are in no count of stolen time. Where they come, no p99 under load can be foretold from a
profile of percentiles.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

WINDOW_S = 0.010
SLOW = 0.75  # of the usual speed


def count(core: int, seconds: float, answer: Connection) -> None:
    """Sends rounds per second of each window."""
    os.sched_setaffinity(0, {core})
    speeds = []
    end_s = time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < end_s:
        rounds = 0
        while (passed_s := time.perf_counter() - start_s) < WINDOW_S:
            sum(number * number for number in range(1000))
            rounds += 1
        speeds.append(rounds / passed_s)
    answer.send(speeds)


def speeds_on(cores: Sequence[int], seconds: float) -> list[list[float]]:
    """Of a process on each core, all at once."""
    pipes = [multiprocessing.Pipe(duplex=False) for _ in cores]
    processes = [
        multiprocessing.Process(target=count, args=(core, seconds, theirs), daemon=True)
        for core, (_, theirs) in zip(cores, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    found: list[list[float]] = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    (alone,) = speeds_on(cores[:1], options.seconds)
    usual = float(np.median(alone))
    print(f"speed of windows of {WINDOW_S * 1e3:g} ms{'':7}p1     p5    p50   below {SLOW:g}")
    both = speeds_on(cores, options.seconds)
    for title, speeds in [("alone", alone), *((f"core {core}, both", s) for core, s in zip(cores, both, strict=True))]:
        ratios = np.array(speeds) / usual
        figures = "".join(f"{value:7.2f}" for value in np.percentile(ratios, [1, 5, 50]))
        print(f"{title:26}{figures}{100 * (ratios < SLOW).mean():9.1f} %")


if __name__ == "__main__":
    main()
