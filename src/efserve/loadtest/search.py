"""Searches for the highest load that meets a goal: pure generators, which yield a load and are sent whether it did.

A goal reads the figures of one level; a search knows only "met" or "not met". Nothing here measures.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from efserve.errors import UsageError
from efserve.records import LevelResult
from efserve.stats import chosen_latency_us, in_reported_windows

PRECISION = 0.05
MOST_RUNS = 30
SLO_SHARE = 0.99
SUSTAINED_SHARE = 0.98  # of the requests that were due; fewer answers mean that a queue grows

Probes = Generator[float, bool, float | None]  # yields loads, is sent "met"; returns the highest one met, or None
Goal = Callable[[LevelResult], bool]


@dataclass(frozen=True, slots=True)
class LatencyGoal:
    """The chosen latency (a percentile, or the mean) is at most `threshold_ms`, and no request failed."""

    threshold_ms: float
    percentile: int | None

    def __call__(self, level: LevelResult) -> bool:
        figures = level.statistics
        if figures.latency is None or figures.errors or not _sustained(level):
            return False
        return chosen_latency_us(figures.latency, self.percentile) <= self.threshold_ms * 1e3

    def __str__(self) -> str:
        name = "mean" if self.percentile is None else f"p{self.percentile}"
        return f"{name} latency <= {self.threshold_ms:g} ms"


@dataclass(frozen=True, slots=True)
class SloGoal:
    """At least 99 % of the requests end within `slo_ms` of the time when they were to be sent; failures count as late.

    And the answers keep up with the load: with a queue that grows no SLO is met, even where the level ended early.
    """

    slo_ms: float

    def __call__(self, level: LevelResult) -> bool:
        return share_within(level, self.slo_ms) >= SLO_SHARE and _sustained(level)

    def __str__(self) -> str:
        return f"{SLO_SHARE * 100:g} % within {self.slo_ms:g} ms"


def share_within(level: LevelResult, slo_ms: float) -> float:
    """The share of the requests that ended in the reported windows, failed ones included, with a latency <= slo_ms."""
    requests = level.record.requests
    within = int((requests.latency_us[in_reported_windows(level.record)] <= slo_ms * 1e3).sum())
    ended = level.statistics.requests + sum(level.statistics.errors.values())
    return within / ended if ended else 0.0


def _sustained(level: LevelResult) -> bool:
    figures, record = level.statistics, level.record
    if not record.load.is_open or not figures.due_per_s:
        return True
    answered = figures.requests_per_s + sum(figures.errors.values()) / figures.duration_s
    under_way = record.pool.unanswered if record.pool else 0  # what is under way at the end may differ from the begin
    slack_per_s = (1 + 2 * under_way**0.5) / figures.duration_s
    return bool(answered + slack_per_s >= SUSTAINED_SHARE * figures.due_per_s)


def linear(levels: Sequence[float]) -> Probes:
    """Level after level upwards, until one does not meet the goal."""
    best = None
    for level in sorted(levels):
        if not (yield level):
            break
        best = level
    return best


def binary(levels: Sequence[float]) -> Probes:
    """Lowest and highest level, then the middle of what is left: the highest met, where meeting ends only once."""
    ordered = sorted(levels)
    low, high = 0, len(ordered) - 1
    if not (yield ordered[low]):
        return None
    if high > low and (yield ordered[high]):
        return ordered[high]
    while high - low > 1:
        middle = (low + high) // 2
        if (yield ordered[middle]):
            low = middle
        else:
            high = middle
    return ordered[low]


def highest(start: float, precision: float = PRECISION, most_runs: int = MOST_RUNS) -> Probes:
    """Doubles from `start` (or halves) until the boundary is enclosed, bisects it, and tries both sides once more.

    Ends when the two sides are within `precision` of one another and each has said the same twice, or after
    `most_runs`. A load that contradicts itself is tried a third time; where that moves the boundary, the search goes on
    from there: one run that noise spoilt does not decide. Returns the highest load that met the goal, below the lowest
    that did not.
    """
    scores: dict[float, _Score] = {}
    for _ in range(most_runs):
        probe = _next(scores, start, precision)
        if probe is None:
            break
        met = yield probe
        scores[probe] = scores.get(probe, _Score()).after(met)
    return _sides(scores)[0]


_LEAST_FACTOR = 2.0**-6  # of the start: below it the goal is out of reach


@dataclass(frozen=True, slots=True)
class _Score:
    """How often a load met the goal, and how often not."""

    met: int = 0
    missed: int = 0

    def after(self, met: bool) -> "_Score":
        return _Score(self.met + met, self.missed + (not met))

    @property
    def tied(self) -> bool:
        return self.met == self.missed

    @property
    def sure(self) -> bool:
        return max(self.met, self.missed) >= 2


def _next(scores: dict[float, _Score], start: float, precision: float) -> float | None:
    """The load to try next; None at the end."""
    if not scores:
        return start
    tied = next((load for load, score in scores.items() if score.tied), None)
    if tied is not None:
        return tied
    good, bad = _sides(scores)
    if good is None:
        assert bad is not None
        return bad / 2 if bad > start * _LEAST_FACTOR else None
    if bad is None:
        return good * 2
    if bad > good * (1 + precision):
        return _round((good * bad) ** 0.5, good, bad)
    return next((side for side in (good, bad) if not scores[side].sure), None)


def _sides(scores: dict[float, _Score]) -> tuple[float | None, float | None]:
    """The highest load that met the goal, of those below the lowest that did not; and that."""
    bad = min((load for load, score in scores.items() if score.missed > score.met), default=None)
    good = max(
        (load for load, score in scores.items() if score.met > score.missed and (bad is None or load < bad)),
        default=None,
    )
    return good, bad


def _round(value: float, low: float, high: float) -> float:
    """The value with as few digits as it takes to stay well between low and high: rates that people can read."""
    for digits in range(1, 17):
        rounded = float(f"{value:.{digits}g}")
        if low < rounded < high and abs(rounded - value) < 0.2 * min(value - low, high - value):
            return rounded
    return value


def search(kind: str, levels: Sequence[float]) -> Probes:
    """The search named by `--search`. Raises UsageError."""
    if kind not in ("binary", "linear"):
        raise UsageError(f"--search: expected binary or linear, got '{kind}'")
    return binary(levels) if kind == "binary" else linear(levels)
