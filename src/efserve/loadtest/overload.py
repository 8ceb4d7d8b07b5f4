"""Whether an open loop asks for more than it gets: then latency grows for as long as the level lasts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from efserve.stats import CLIENT_BOUND_CORES, STABLE_WINDOWS

BACKLOG_PART = 0.02  # of the requests of the last windows, by which the backlog may grow
BACKLOG_REQUESTS = 10  # that say nothing
SLOW_WINDOWS = 5  # in which backlog and latency always rise


@dataclass(frozen=True, slots=True)
class Flow:
    """One window of an open loop."""

    length_s: float
    due: int  # requests to be sent in it
    ended: int  # answers and failures
    backlog: int  # due, but not ended, at its end
    latency_us: float  # mean of those that ended; nan for none
    client_cores: float  # used per process of load


def overload(flows: Sequence[Flow]) -> str:
    """Why latency grows without bound, as far as these windows tell; empty when it does not.

    Fast growth: over the last three windows the backlog rises each time, by more than 2 % of what was due, and latency
    rises. Slow growth: backlog and latency rise in each of the last five windows. Both need at least 10 requests.
    """
    last = flows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS:
        return ""
    due, ended = sum(flow.due for flow in last), sum(flow.ended for flow in last)
    fast = due - ended > max(BACKLOG_PART * due, BACKLOG_REQUESTS) and _rise(last)
    longer = flows[-SLOW_WINDOWS:]
    slow = len(longer) == SLOW_WINDOWS and longer[-1].backlog - longer[0].backlog > BACKLOG_REQUESTS and _rise(longer)
    if not (fast or slow):
        return ""
    length_s = sum(flow.length_s for flow in last)
    asked, got = f"{due / length_s:.6g}/s", f"{ended / length_s:.6g}/s"
    cores = sum(flow.client_cores * flow.length_s for flow in last) / length_s
    if cores > CLIENT_BOUND_CORES:
        return (
            f"latency grows: this client does not keep up with {asked} (it handles {got}, and uses {cores:.2f} of a "
            "core per process); try more --processes"
        )
    return f"latency grows: the server does not keep up with {asked} (it answers {got})"


def _rise(flows: Sequence[Flow]) -> bool:
    """Backlog and latency are greater after each window; a window without any answer is worse than any latency."""
    return all(
        after.backlog > before.backlog and not after.latency_us <= before.latency_us
        for before, after in pairwise(flows)
    )
