"""Two results level by level: the ratio of each figure with its interval, and whether it is more than noise. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from efserve.intervals import Interval, quotient_interval
from efserve.records import BenchResult, LevelResult, Load
from efserve.reports.levels import long_name

Verdict = Literal["noise", "better", "worse", "unclear"]

CHANCE = "Of figures that do not differ, up to 1 in 20 falls outside its interval by chance."
DRIFT = "The intervals hold what varied within a run, not a drift from run to run: `efserve compare` measures in turns."


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one level in both results. `ratio` is second / first; its interval is None where unknown."""

    figure: str
    unit: str
    first: float
    second: float
    interval: Interval | None  # of the ratio
    more_is_better: bool

    @property
    def ratio(self) -> float:
        return self.second / self.first if self.first > 0 else float("nan")

    @property
    def verdict(self) -> Verdict:
        """ "noise" where the interval of the ratio includes 1: no difference."""
        if self.interval is None:
            return "unclear"
        if 1.0 in self.interval:
            return "noise"
        return "better" if (self.interval.low > 1) == self.more_is_better else "worse"


@dataclass(frozen=True, slots=True)
class LevelDifferences:
    """A level that both results have."""

    name: str  # "concurrency 8"
    label: str  # "8"
    differences: tuple[Difference, ...]
    errors: tuple[int, int]
    unstable: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class RunDifferences:
    """All of it; `setup` says what else differs between the runs, as "option: first -> second"."""

    levels: tuple[LevelDifferences, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    setup: tuple[str, ...]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many figures got which verdict."""
        return dict(Counter(found.verdict for level in self.levels for found in level.differences))


def differences(first: BenchResult, second: BenchResult) -> RunDifferences:
    """Compare the levels of the same load; a load measured twice is paired in order."""
    of_first, of_second = _by_load(first.levels), _by_load(second.levels)
    return RunDifferences(
        levels=tuple(_level(level, of_second[key]) for key, level in of_first.items() if key in of_second),
        only_first=tuple(long_name(level.record) for key, level in of_first.items() if key not in of_second),
        only_second=tuple(long_name(level.record) for key, level in of_second.items() if key not in of_first),
        setup=tuple(_setup(first, second)),
    )


def _by_load(levels: Sequence[LevelResult]) -> dict[tuple[Load, int], LevelResult]:
    seen, found = Counter[Load](), {}
    for level in levels:
        found[level.record.load, seen[level.record.load]] = level
        seen[level.record.load] += 1
    return found


def _level(first: LevelResult, second: LevelResult) -> LevelDifferences:
    return LevelDifferences(
        name=long_name(first.record),
        label=first.record.load.label,
        differences=tuple(_differences(first, second)),
        errors=(sum(first.statistics.errors.values()), sum(second.statistics.errors.values())),
        unstable=(not first.record.stable, not second.record.stable),
    )


def _differences(first: LevelResult, second: LevelResult) -> Iterable[Difference]:
    one, other = first.statistics, second.statistics
    yield _difference(
        ("throughput", "req/s", True),
        (one.requests_per_s, one.intervals.requests_per_s),
        (other.requests_per_s, other.intervals.requests_per_s),
    )
    if one.latency is None or other.latency is None:
        return
    for name in ("mean", "p50", "p90", "p99"):
        field = f"{name}_us"
        yield _difference(
            (name, "ms", False),
            (getattr(one.latency, field) / 1e3, _scaled(getattr(one.intervals, field))),
            (getattr(other.latency, field) / 1e3, _scaled(getattr(other.intervals, field))),
        )


def _scaled(interval: Interval | None) -> Interval | None:
    return interval.scaled(1e-3) if interval is not None else None


def _difference(
    what: tuple[str, str, bool], first: tuple[float, Interval | None], second: tuple[float, Interval | None]
) -> Difference:
    interval = None
    if first[1] is not None and second[1] is not None:
        interval = quotient_interval(second[0], second[1], first[0], first[1])
    return Difference(what[0], what[1], first[0], second[0], interval, what[2])


def _setup(first: BenchResult, second: BenchResult) -> Iterable[str]:
    one, other = _facts(first), _facts(second)
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            yield f"{name}: {_told(one.get(name))} → {_told(other.get(name))}"


def _facts(result: BenchResult) -> dict[str, object]:
    """What a difference may come from, by name; the embedded server's free port is none of it."""
    target, machine = result.target, result.machine
    return {
        "model": target.model,
        "version": target.model_version,
        "server": f"{target.server_name} {target.server_version}".strip(),
        "address": "embedded" if target.embedded else target.url,
        "inputs": "; ".join(target.inputs),
        "CPU": machine.cpu_model,
        "cores": machine.cores,
        "kernel": machine.kernel,
        "Python": machine.python,
        **machine.libraries,
        **{name: value for name, value in result.config.items() if name not in ("url", "model")},
        "model configuration": target.config,
    }


def _told(value: object) -> str:
    if value in (None, "", [], ()):
        return "not given"
    return str(value) if len(str(value)) <= 60 else "another"


def change(difference: Difference) -> str:
    """The difference in percent: "+1.9 %"."""
    return percentage(difference.ratio)


def interval_text(difference: Difference) -> str:
    """The interval of the change: "-0.3 … +4.1 %"; a dash where it is not known."""
    if difference.interval is None:
        return "-"
    return f"{percentage(difference.interval.low)} … {percentage(difference.interval.high)}"


def percentage(ratio: float) -> str:
    """A ratio as a change in percent, with its sign; from three times on as a factor."""
    if math.isnan(ratio):
        return "-"
    if ratio >= 3:
        return f"x{ratio:.3g}"
    part = 100 * (ratio - 1)
    return f"{part:+.1f} %" if abs(part) < 10 else f"{part:+.0f} %"
