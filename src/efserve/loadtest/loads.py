"""From the load of a level to the work that makes it: schedules of open loops, counts of closed ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efserve.arrivals import RateCurve, Seconds, Trace, intended, parse_trace, shaped, steady
from efserve.errors import UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.job import ClientsJob, ClosedJob, OpenJob, Schedule, Work
from efserve.loadtest.levels import parse_range
from efserve.loadtest.workload import MAX_MODELS, Share, read_workload
from efserve.records import Load

DEFAULT_CLIENTS_FACTOR = 20  # clients in all, of those at a time
DEFAULT_REQUESTS_PER_CLIENT = 10
SPARE_S = 5.0  # of load behind the last window: it goes on while a busy server is slow to give its statistics
MAX_REQUESTS = 50_000_000  # of one schedule


@dataclass(frozen=True, slots=True)
class Mix:
    """Which models get the requests, and when, as far as files say so."""

    shares: tuple[Share, ...]  # of a workload; empty without one
    trace: Trace | None
    models: tuple[str, ...]  # under load; "" is the one that --model names, or the first

    @property
    def rate(self) -> float:
        """Requests/s of a workload, all models together."""
        return sum(share.rate for share in self.shares)

    def resolved(self, names: Sequence[str]) -> "Mix":
        """A trace whose requests without a model go to the one that was found for them; `names`: of all that were."""
        if self.trace is None:
            return self
        name_of = dict(zip(self.models, names, strict=True))
        trace = Trace(self.trace.time_s, tuple(name_of[model] for model in self.trace.models))
        return Mix((), trace, tuple(dict.fromkeys(names)))

    def load(self) -> Load | None:
        """The load that the files ask for."""
        if self.trace is not None:
            return Load("schedule", 0.0, label="trace")
        if self.shares:
            return Load("rate", self.rate, "mixed", label=f"mixed {self.rate:g}/s")
        return None


def read_mix(config: BenchConfig) -> Mix:
    """What `--workload` or `--schedule` say. Raises UsageError."""
    if config.workload:
        shares = read_workload(Path(config.workload))
        return Mix(shares, None, tuple(share.model for share in shares))
    if config.schedule:
        try:
            text = Path(config.schedule).read_text(encoding="utf-8")
        except OSError as exc:
            raise UsageError(f"--schedule {config.schedule}: cannot read it: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise UsageError(f"--schedule {config.schedule}: not text in UTF-8") from exc
        trace = parse_trace(text, config.schedule)
        models = tuple(dict.fromkeys(trace.models))
        if len(models) > MAX_MODELS:
            raise UsageError(f"--schedule {config.schedule}: at most {MAX_MODELS} models, it names {len(models)}")
        return Mix((), trace, models)
    return Mix((), None, (config.model,))


def work_of(load: Load, config: BenchConfig, mix: Mix) -> Work:
    """The work of a level, before it is spread over processes."""
    if load.kind == "clients":
        at_once = int(load.value)
        total = config.total_clients or at_once * DEFAULT_CLIENTS_FACTOR
        return ClientsJob(at_once, total, config.requests_per_client or DEFAULT_REQUESTS_PER_CLIENT)
    if load.kind == "concurrency":
        return ClosedJob(int(load.value), config.request_count or 0)
    return OpenJob(_schedule(load, config, mix), config.max_connections)


def lasts_to_the_end(load: Load, config: BenchConfig) -> bool:
    """True for a load that has an end of its own; others are measured until they are stable."""
    counted = config.request_count is not None and load.kind in ("concurrency", "rate")
    return counted or load.kind in ("schedule", "clients") or bool(load.shape)


def _schedule(load: Load, config: BenchConfig, mix: Mix) -> Schedule:
    if mix.trace is not None and load.kind == "schedule":
        models = [mix.models.index(model) for model in mix.trace.models]
        return _merged([mix.trace.time_s], [np.array(models, np.uint8)])
    if load.shape:
        low, high, step = parse_range(config.request_rate)
        curve = shaped(load.shape, low, high, config.duration_s, step)
        return _single(_times(curve, load.distribution, config, config.seed))
    if not mix.shares:
        return _single(_steady_times(load.value, load.distribution, config, config.seed))
    scale = load.value / mix.rate
    times = [
        _steady_times(share.rate * scale, share.distribution or config.distribution, config, config.seed + index)
        for index, share in enumerate(mix.shares)
    ]
    schedule = _merged(times, [np.full(len(single), index, np.uint8) for index, single in enumerate(times)])
    if config.request_count:
        return Schedule(schedule.dues_ns[: config.request_count], schedule.models[: config.request_count])
    return schedule


def _steady_times(per_s: float, distribution: str, config: BenchConfig, seed: int) -> Seconds:
    """Enough for the warm-up and all windows; or for the requests that are asked for."""
    count = config.request_count
    if not count:
        duration_s = config.warmup_s + config.duration_s + SPARE_S
        return _times(steady(per_s, duration_s), distribution, config, seed)
    expected = count + (0 if distribution == "constant" else 10 * (1 + config.gamma_cv) * math.sqrt(count) + 20)
    return _times(steady(per_s, expected / per_s), distribution, config, seed)[:count]


def _times(curve: RateCurve, distribution: str, config: BenchConfig, seed: int) -> Seconds:
    expected = float(curve.expected()[-1])
    if expected > MAX_REQUESTS:
        raise UsageError(
            f"{expected:.3g} requests in one level are more than {MAX_REQUESTS} can be planned; lower the rate or "
            "--duration"
        )
    times = intended(curve, distribution, seed, config.gamma_cv)
    return times if times.size else np.zeros(1)


def _single(times: Seconds) -> Schedule:
    return _merged([times], [np.zeros(len(times), np.uint8)])


def _merged(times: Sequence[Seconds], models: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> Schedule:
    dues_ns = (np.concatenate(times) * 1e9).astype(np.int64)
    order = np.argsort(dues_ns, kind="stable")
    return Schedule(dues_ns[order], np.concatenate(models)[order])
