"""What every report says of one level: its name, its figures with their confidence, its marks and remarks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from efserve.intervals import Interval
from efserve.records import BenchResult, LevelRecord, LevelResult, SearchOutcome
from efserve.stats import level_statistics

HEADINGS = {"concurrency": "conc", "rate": "rate", "schedule": "load", "clients": "clients"}
MOST_LETTERS = 12  # of a level's name in a chart
LATE_PART, LATE_US = 0.10, 100.0  # a mean client delay above both, the part of the latency and so long, is remarked


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """The requests that the figures of a level cover, in the order in which they ended."""

    latency_us: npt.NDArray[np.int64]
    service_us: npt.NDArray[np.int64]


def reported(record: LevelRecord) -> Reported:
    """The requests that ended in the reported windows."""
    windows = record.windows[len(record.windows) - record.reported :]
    ends_us = (windows[0].start_us, windows[-1].end_us)
    first, last = np.searchsorted(record.requests.end_us, ends_us, side="right")
    inside = slice(int(first), int(last))
    return Reported(record.requests.latency_us[inside], record.requests.service_us[inside])


def recomputed(result: BenchResult) -> BenchResult:
    """The same result with all statistics made anew from its records."""
    levels = tuple(LevelResult(level.record, level_statistics(level.record)) for level in result.levels)
    return replace(result, levels=levels)


def heading(levels: Sequence[LevelResult]) -> str:
    """What the column of loads is called: "conc", "rate", or "load" where kinds are mixed."""
    kinds = {level.record.load.kind for level in levels}
    return HEADINGS.get(kinds.pop(), "load") if len(kinds) == 1 else "load"


def long_name(record: LevelRecord) -> str:
    """A level in words: "concurrency 8", "rate 400/s"."""
    load = record.load
    if load.kind in ("concurrency", "rate") and load.label[:1].isdigit():
        return f"{load.kind} {load.label}"
    return load.label or load.kind


def short_name(record: LevelRecord) -> str:
    """The label of a level, cut to what fits an axis."""
    label = record.load.label
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"


def is_remarkable(level: LevelResult) -> bool:
    """True when `remarks` has something to say."""
    return any(True for _ in remarks(level))


def remarks(level: LevelResult) -> Iterable[str]:
    """What the reader must know before believing the figures of a level."""
    record, statistics = level.record, level.statistics
    if not record.stable:
        yield f"unstable: {record.reason}"
    if statistics.client_bound:
        yield (
            f"client-bound: the load generator used {statistics.client_cpu_cores:.2f} of a core; the server may do more"
        )
    yield from _late(level)
    for kind, count in statistics.errors.items():
        text = next((failed.text for failed in record.failures if failed.kind == kind), "")
        yield f"{count} error{'s' * (count != 1)} '{kind}', the first: {text.strip() or 'no text'}"


def _late(level: LevelResult) -> Iterable[str]:
    """Of an open loop: what the client could not send in time, and what the server did not answer in time."""
    pool, delay, latency = level.record.pool, level.statistics.delay, level.statistics.latency
    if delay is not None and latency is not None and delay.mean_us > max(LATE_PART * latency.mean_us, LATE_US):
        part = 100 * delay.mean_us / max(latency.mean_us, 1.0)
        waited = f"; {pool.waited} requests found no free connection" if pool is not None and pool.waited else ""
        yield f"client delay: requests left {ms(delay.mean_us)} ms late on average, {part:.0f} % of the latency{waited}"
    if pool is not None and pool.unanswered and pool.unanswered > 0.01 * max(level.statistics.requests, 1):
        yield f"overloaded: {pool.unanswered} requests that were due had no answer when the measurement ended"


def marks(level: LevelResult) -> list[str]:
    """The same in one word each."""
    found = ["stable" if level.record.stable else "unstable"]
    if level.statistics.client_bound:
        found.append("client-bound")
    if any(remark.startswith("client delay") for remark in _late(level)):
        found.append("client late")
    if any(remark.startswith("overloaded") for remark in _late(level)):
        found.append("overloaded")
    if level.statistics.errors:
        found.append("errors")
    return found


def clients_line(level: LevelResult) -> str:
    """What the short-lived clients of a stress test saw; empty for other loads."""
    found = level.statistics.clients
    if found is None:
        return ""
    return f"{found.clients} clients: mean latency {ms(found.mean_us)} ms, deviation {ms(found.deviation_us)} ms"


def search_line(search: SearchOutcome) -> str:
    """What a search for the highest load found, in a sentence."""
    kind = "" if search.found is None else f"{search.found.kind} " if search.found.label[:1].isdigit() else ""
    told = "no load that was tried meets it" if search.found is None else f"met up to {kind}{search.found.label}"
    more = "; the load generator was the limit, the server may do more" if search.client_bound else ""
    return f"Goal {search.goal}: {told}{more}."


def goodput_per_s(level: LevelResult) -> float | None:
    """Answers per second within the SLO of their model; None when no model has one."""
    models = level.statistics.models
    if not any(model.slo_ms for model in models):
        return None
    return sum(model.within_slo for model in models if model.slo_ms) / level.statistics.duration_s


def ms(value_us: float) -> str:
    """Microseconds as milliseconds, in five or so characters."""
    milliseconds = value_us / 1e3
    if milliseconds < 10:
        return f"{milliseconds:.3f}"
    return f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def plain(text: str) -> str:
    """Text from a file or a server, without the control characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def spread(value: float, interval: Interval | None) -> str:
    """Half the interval in percent of the figure, such as "±1.2 %"; empty where no interval is known."""
    if interval is None or value <= 0:
        return ""
    part = 100 * max(interval.high - value, value - interval.low) / value
    return f"±{part:.1f} %" if part < 10 else f"±{part:.0f} %"
