"""Batches side by side on one device: each gets on more slowly for as long as others run there, and no longer."""

from collections.abc import Sequence

from efserve.planned import PlannedWorker
from efserve.planning.interference import Interference
from efserve.planning.plan import Plan


class Neighbours:
    """What runs now on all devices, by the number of the worker, and when it will end as things stand.

    `costs[me][you]` is by how much `you` slows `me` down while it runs: 0.1 makes a batch take 1.1 times as long. What
    several neighbours cost adds up. A worker runs one batch at a time.
    """

    __slots__ = ("_causes", "_costs", "_left_ns", "_running", "_since_ns", "_slow", "ends_ns")

    def __init__(self, costs: Sequence[dict[int, float]]) -> None:
        self._costs = costs
        self._causes = [[me for me, of in enumerate(costs) if you in of] for you in range(len(costs))]
        self._running = [False] * len(costs)
        self._left_ns = [0.0] * len(costs)  # what a batch still takes by itself
        self._since_ns = [0] * len(costs)
        self._slow = [1.0] * len(costs)
        self.ends_ns = [-1] * len(costs)  # -1: it does not run

    def __repr__(self) -> str:
        return f"<Neighbours: {sum(self._running)} of {len(self._running)} run>"

    def begin(self, worker: int, took_ns: int, now_ns: int) -> list[int]:
        """A batch begins that takes so long by itself; whose ends are other ones now, the worker's own among them."""
        self._running[worker] = True
        self._left_ns[worker] = took_ns
        self._since_ns[worker] = now_ns
        self._slow[worker] = 1 + sum(cost for you, cost in self._costs[worker].items() if self._running[you])
        self.ends_ns[worker] = now_ns + int(took_ns * self._slow[worker])
        return [worker, *self._change(worker, 1.0, now_ns)]

    def end(self, worker: int, now_ns: int) -> list[int]:
        """The worker's batch has ended; whose ends are other ones now."""
        self._running[worker] = False
        self.ends_ns[worker] = -1
        return self._change(worker, -1.0, now_ns)

    def _change(self, you: int, sign: float, now_ns: int) -> list[int]:
        changed = []
        for me in self._causes[you]:
            if not self._running[me]:
                continue
            self._left_ns[me] -= (now_ns - self._since_ns[me]) / self._slow[me]
            self._since_ns[me] = now_ns
            self._slow[me] += sign * self._costs[me][you]
            self.ends_ns[me] = now_ns + max(0, int(self._left_ns[me] * self._slow[me]))
            changed.append(me)
        return changed


def costs(plan: Plan, workers: Sequence[PlannedWorker], interference: Interference | None) -> list[dict[int, float]]:
    """What each worker costs each other one, where that is known and not nothing; those of one partition: nothing."""
    found: list[dict[int, float]] = [{} for _ in workers]
    if interference is None:
        return found
    for me, mine in enumerate(workers):
        here = plan.placements[mine.placement]
        for you, yours in enumerate(workers):
            there = plan.placements[yours.placement]
            if mine.placement == yours.placement or here.device != there.device:
                continue
            beside = [(yours.facts.model, there.share_pct)]
            cost = (interference.slowdown(mine.facts.model, here.share_pct, beside) - 1) / yours.facts.processes
            if cost > 0:
                found[me][you] = cost
    return found
