"""Interference: how much slower a model is beside another on the same device.

The linear form of gpu-lets: I = c0 l2_me p_me + c1 l2_you p_you + c2 dram_me p_me + c3 dram_you p_you + c4, never below
1, where l2 and dram are a model's own utilisations (0..1) and p the shares (0..1). The terms of several neighbours add
up. Fitted per kind of device. A pair that was measured counts as it was measured; the linear form is for all others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from efserve.errors import ConfigError, UsageError
from efserve.pairs import pairs_path
from efserve.planning.plan import Capacity, Point


@dataclass(frozen=True, slots=True)
class Load:
    """What a model asks of the memory system when it runs alone on the whole device, each 0..1."""

    l2: float
    dram: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One measurement: `me` on `my_pct` beside `you` on `your_pct` took `slowdown` times as long as alone."""

    me: str
    my_pct: float
    you: str
    your_pct: float
    slowdown: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """A file of measured pairs, with the load of each model in them."""

    loads: dict[str, Load]
    pairs: tuple[Pair, ...]


Beside = tuple[str, float, str, float]  # me, my share, you, your share; shares in percent, to a tenth


def beside(me: str, my_pct: float, you: str, your_pct: float) -> Beside:
    """What a measured pair is found by."""
    return (me, round(my_pct, 1), you, round(your_pct, 1))


@dataclass(frozen=True, slots=True)
class Interference:
    """Measured pairs and a model fitted to them. Models without a load of their own count as the greatest known."""

    coefficients: tuple[float, float, float, float, float]
    loads: dict[str, Load]
    error_pct: float | None = None  # mean absolute error of predictions for pairs left out of the fit; None: too few
    p90_error_pct: float | None = None
    measured: dict[Beside, float] = field(default_factory=dict)  # slowdowns, at least 1

    def slowdown(self, me: str, my_pct: float, neighbours: Sequence[tuple[str, float]]) -> float:
        """How many times as long `me` takes beside these models on their shares; at least 1, and 1 beside nobody.

        What measured neighbours cost adds up; so do the terms of the others.
        """
        excess = 0.0
        others = []
        for you, your_pct in neighbours:
            known = self.measured.get(beside(me, my_pct, you, your_pct))
            if known is None:
                others.append((you, your_pct))
            else:
                excess += known - 1
        if others:
            pressure = sum(self._pressure(you) * your_pct / 100 for you, your_pct in others)
            excess += max(0.0, self._own(me, my_pct) + pressure - 1)
        return 1 + excess

    def worst(self, me: str, my_pct: float, choices: Iterable[tuple[str, float]]) -> float:
        """The greatest slowdown that neighbours out of (model, share) could cause on what `me` leaves of the device."""
        room_pct = 100 - my_pct
        per_pct = own = 0.0
        for you, your_pct in choices:
            if your_pct > room_pct + 0.05:
                continue
            known = self.measured.get(beside(me, my_pct, you, your_pct))
            if known is None:
                own = max(own, self._own(me, my_pct) - 1)
                per_pct = max(per_pct, self._pressure(you) / 100)
            else:
                per_pct = max(per_pct, (known - 1) / your_pct)
        return 1 + own + per_pct * (room_pct + 0.05)

    def _own(self, me: str, my_pct: float) -> float:
        load = self._load(me)
        return (self.coefficients[0] * load.l2 + self.coefficients[2] * load.dram) * my_pct / 100 + self.coefficients[4]

    def _pressure(self, you: str) -> float:
        load = self._load(you)
        return self.coefficients[1] * load.l2 + self.coefficients[3] * load.dram

    def _load(self, model: str) -> Load:
        known = self.loads.get(model)
        if known is not None:
            return known
        loads = self.loads.values()
        return Load(max((load.l2 for load in loads), default=1.0), max((load.dram for load in loads), default=1.0))


def _terms(me: Load, my_pct: float, you: Load, your_pct: float) -> tuple[float, ...]:
    my, your = my_pct / 100, your_pct / 100
    return (me.l2 * my, you.l2 * your, me.dram * my, you.dram * your, 1.0)


def fit(pairs: Sequence[Pair], loads: dict[str, Load]) -> Interference:
    """The least-squares fit of measured pairs, with its error by leaving out one pair of models at a time.

    Raises ConfigError where a pair's model has no load, or nothing was measured.
    """
    import numpy as np

    unknown = sorted({name for pair in pairs for name in (pair.me, pair.you)} - loads.keys())
    if unknown:
        raise ConfigError(f"no memory load is known for {', '.join(unknown)}, which the measured pairs name")
    groups = [frozenset((pair.me, pair.you)) for pair in pairs]
    if not groups:
        raise ConfigError("no pair of models was measured; `efserve profile --pairs` measures them")
    terms = np.array([_terms(loads[p.me], p.my_pct, loads[p.you], p.your_pct) for p in pairs])
    measured = np.array([pair.slowdown for pair in pairs])
    errors_pct = np.zeros(len(pairs))
    can_leave_out = len(set(groups)) > 1
    for group in set(groups) if can_leave_out else ():
        out = np.array([other == group for other in groups])
        coefficients = np.linalg.lstsq(terms[~out], measured[~out], rcond=None)[0]
        predicted = np.maximum(1.0, terms[out] @ coefficients)
        errors_pct[out] = 100 * np.abs(predicted - measured[out]) / measured[out]
    slowdowns: dict[Beside, float] = {}  # the worst, where several batches were measured
    for pair in pairs:
        key = beside(pair.me, pair.my_pct, pair.you, pair.your_pct)
        slowdowns[key] = max(1.0, pair.slowdown, slowdowns.get(key, 1.0))
    c0, c1, c2, c3, c4 = (float(c) for c in np.linalg.lstsq(terms, measured, rcond=None)[0])
    return Interference(
        (c0, c1, c2, c3, c4),
        dict(loads),
        float(errors_pct.mean()) if can_leave_out else None,
        float(np.percentile(errors_pct, 90)) if can_leave_out else None,
        slowdowns,
    )


def read_interference(path: Path) -> Interference:
    """The model fitted to the measurements in a file. Raises ConfigError where they cannot be read or are too few."""
    try:
        measured = msgspec.json.decode(path.read_bytes(), type=Measurements)
    except OSError as exc:
        raise ConfigError(f"cannot read measured pairs {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path} does not hold measured pairs: {exc}") from exc
    return fit(measured.pairs, measured.loads)


def find_interference(profiles: Path, kind: str, asked: Path | None, *, forbidden: bool) -> Interference | None:
    """What is known of neighbours: from the file asked for, or from the one beside the profiles of a kind of device.

    None where there is neither, or it is `forbidden` to know. Raises UsageError where that contradicts a file.
    """
    if asked and forbidden:
        raise UsageError("--interference and --no-interference contradict each other: give one of them")
    beside = pairs_path(profiles, kind)
    if forbidden or not (asked or beside.exists()):
        return None
    return read_interference(asked or beside)


def slowed(capacities: Sequence[Capacity], interference: Interference) -> tuple[Capacity, ...]:
    """The capacities beside the worst neighbours that each partition could get: what every policy then plans with."""
    choices = sorted({(capacity.model, point.share_pct) for capacity in capacities for point in capacity.points})
    worst = {(me, my_pct): interference.worst(me, my_pct, choices) for me, my_pct in choices}
    return tuple(
        replace(
            capacity,
            points=tuple(_slowed(point, worst[capacity.model, point.share_pct]) for point in capacity.points),
        )
        for capacity in capacities
    )


def _slowed(point: Point, slow: float) -> Point:
    return replace(point, latency_ms=point.latency_ms * slow, throughput_per_s=point.throughput_per_s / slow)
