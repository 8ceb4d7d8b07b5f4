"""Workers as a plan wants them: how large their batches are, what they carry, and whose turn it is on a partition.

Pure facts and one small state for each partition that several models share; the router of each model asks it.
"""

from dataclasses import dataclass


class Turns:
    """One partition for several models: it runs one batch at a time, and the models follow one another in a circle.

    Who has nothing to run is passed over, so a batch begins as soon as the partition is free; and none has a second
    turn while another waits for its first. So no model waits longer than one batch of each, which is the plan's cycle.
    """

    __slots__ = ("_last", "_order", "free_ns", "holder")

    def __init__(self) -> None:
        self.holder: object = None  # whose batch runs; None: the partition is free
        self.free_ns = 0  # when that batch is expected to end
        self._order: list[object] = []
        self._last: object = None  # who had the last turn

    def __repr__(self) -> str:
        return f"<Turns of {len(self._order)}, {'free' if self.holder is None else 'busy'}>"

    def join(self, who: object) -> None:
        """From now on `who` has a turn in each round."""
        self._order.append(who)

    def leave(self, who: object) -> None:
        """`who` has no turns any more, and gives back the one that it has."""
        self._order.remove(who)
        if self.holder is who:
            self.holder = None

    def take(self, who: object, free_ns: int) -> None:
        """It is the turn of `who`, until about `free_ns`; the partition must be free."""
        assert self.holder is None
        self.holder = self._last = who
        self.free_ns = free_ns

    def give_back(self) -> None:
        """The batch has ended; `following` tells whom to ask next."""
        self.holder = None

    def following(self) -> list[object]:
        """Everybody, from the one after the last turn on."""
        order = self._order
        if self._last not in order:
            return list(order)
        after = order.index(self._last) + 1
        return order[after:] + order[:after]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan says of one worker; a worker of a plan holds one batch at a time."""

    rows: int  # of its largest batch
    capacity_per_s: float  # requests; the larger, the more of them it is given
    batch_ns: int  # how long its largest batch takes
    row_ns: int  # and a batch of one
    turns: Turns | None = None  # of its partition, where other models run there too

    def took_ns(self, rows: int) -> int:
        """How long a batch takes, by the straight line through what is known."""
        if rows >= self.rows:
            return self.batch_ns
        return self.row_ns + (self.batch_ns - self.row_ns) * (rows - 1) // (self.rows - 1)
