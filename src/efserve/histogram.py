"""A latency histogram of bounded size that can be added to others: log-linear buckets, as in HdrHistogram.

A value stands in a bucket that is at most 1/512 of it wide and is given back as the bucket's middle: wrong by at most
0.1 %. Values below 1024 are exact. For raw records that would be too large, and for figures of many processes.
"""

import numpy as np
import numpy.typing as npt

_BITS = 10
_HALF = 1 << (_BITS - 1)  # buckets per doubling
MOST = (1 << 40) - 1  # in microseconds: twelve days
_SLOTS = (40 - _BITS + 2) * _HALF
RELATIVE_ERROR = 1 / (2 * _HALF)

Counts = npt.NDArray[np.int64]


class Histogram:
    """Counts of whole values from 0 to `MOST`; greater ones are counted as `MOST`."""

    __slots__ = ("_counts", "count", "greatest", "least", "total")

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(_SLOTS, np.int64)
        self.count = 0
        self.total = 0  # exact, as are least and greatest
        self.least = MOST
        self.greatest = 0

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}>"

    def add(self, values: Counts) -> None:
        """Count values."""
        if not values.size:
            return
        values = np.clip(values, 0, MOST)
        slots, counts = np.unique(_slots(values), return_counts=True)
        self._counts[slots] += counts
        self.count += values.size
        self.total += int(values.sum())
        self.least = min(self.least, int(values.min()))
        self.greatest = max(self.greatest, int(values.max()))

    def merge(self, other: "Histogram") -> None:
        """Count what the other has counted."""
        self._counts += other._counts
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    @property
    def mean(self) -> float:
        """The exact mean; nan when empty."""
        return self.total / self.count if self.count else float("nan")

    def percentile(self, percentile: float) -> float:
        """The value at rank ceil(p/100 n) of the sorted values, wrong by at most 0.1 %; nan when empty."""
        if not self.count:
            return float("nan")
        rank = min(max(int(np.ceil(percentile / 100 * self.count)), 1), self.count)
        slot = int(np.searchsorted(np.cumsum(self._counts), rank))
        low, width = _bucket(slot)
        return float(min(max(low + (width - 1) / 2, self.least), self.greatest))

    def share_up_to(self, value: int) -> float:
        """The share of values not above `value`, which is rounded up to the end of its bucket; nan when empty."""
        if not self.count:
            return float("nan")
        last = int(_slots(np.array([min(value, MOST)]))[0])
        return float(self._counts[: last + 1].sum() / self.count)

    def buckets(self) -> tuple[Counts, Counts, Counts]:
        """Where they are filled: the least and the greatest value of each bucket, and its count."""
        filled = np.flatnonzero(self._counts)
        shift = np.maximum((filled >> (_BITS - 1)) - 1, 0)
        low = (filled - (shift << (_BITS - 1))) << shift
        return low, low + (1 << shift) - 1, self._counts[filled]


def _slots(values: Counts) -> Counts:
    """Numbers of the buckets: the top `_BITS` bits of a value, and how far it is shifted to get them."""
    length = np.frexp(values.astype(np.float64))[1].astype(np.int64)  # bits; exact below 2^53
    shift = np.maximum(length - _BITS, 0)
    slots: Counts = (shift << (_BITS - 1)) + (values >> shift)
    return slots


def _bucket(slot: int) -> tuple[int, int]:
    """The least value of a bucket, and how many values it takes."""
    shift = max((slot >> (_BITS - 1)) - 1, 0)
    return (slot - (shift << (_BITS - 1))) << shift, 1 << shift
