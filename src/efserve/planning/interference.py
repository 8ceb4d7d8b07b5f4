"""Interference: how much slower a model is beside another on the same device.

The linear form of gpu-lets: I = c0 l2_me p_me + c1 l2_you p_you + c2 dram_me p_me + c3 dram_you p_you + c4, never below
1, where l2 and dram are a model's own utilisations (0..1) and p the shares (0..1). The terms of several neighbours add
up. Fitted per kind of device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from efserve.errors import ConfigError
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


@dataclass(frozen=True, slots=True)
class Interference:
    """A fitted model. Models without a load of their own count as the greatest load that is known."""

    coefficients: tuple[float, float, float, float, float]
    loads: dict[str, Load]
    error_pct: float = 0.0  # mean absolute error of predictions for pairs that were left out of the fit
    p90_error_pct: float = 0.0

    def slowdown(self, me: str, my_pct: float, neighbours: Sequence[tuple[str, float]]) -> float:
        """How many times as long `me` takes beside these models on their shares; at least 1, and 1 beside nobody."""
        if not neighbours:
            return 1.0
        pressure = sum(self._pressure(you) * your_pct / 100 for you, your_pct in neighbours)
        return max(1.0, self._own(me, my_pct) + pressure)

    def worst(self, me: str, my_pct: float, models: Sequence[str]) -> float:
        """The greatest slowdown that any of the models could cause, together, on what `me` leaves of the device."""
        pressure = max((self._pressure(you) for you in models), default=0.0)
        return max(1.0, self._own(me, my_pct) + max(0.0, pressure) * (1 - my_pct / 100))

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

    Raises ConfigError where a pair's model has no load or there are too few pairs to leave one out.
    """
    import numpy as np

    unknown = sorted({name for pair in pairs for name in (pair.me, pair.you)} - loads.keys())
    if unknown:
        raise ConfigError(f"no memory load is known for {', '.join(unknown)}, which the measured pairs name")
    groups = [frozenset((pair.me, pair.you)) for pair in pairs]
    if len(set(groups)) < 2:
        raise ConfigError(f"{len(set(groups))} pair of models was measured; at least two are needed to tell an error")
    terms = np.array([_terms(loads[p.me], p.my_pct, loads[p.you], p.your_pct) for p in pairs])
    measured = np.array([pair.slowdown for pair in pairs])
    errors_pct = np.zeros(len(pairs))
    for group in set(groups):
        out = np.array([other == group for other in groups])
        coefficients = np.linalg.lstsq(terms[~out], measured[~out], rcond=None)[0]
        predicted = np.maximum(1.0, terms[out] @ coefficients)
        errors_pct[out] = 100 * np.abs(predicted - measured[out]) / measured[out]
    c0, c1, c2, c3, c4 = (float(c) for c in np.linalg.lstsq(terms, measured, rcond=None)[0])
    return Interference(
        (c0, c1, c2, c3, c4), dict(loads), float(errors_pct.mean()), float(np.percentile(errors_pct, 90))
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


def slowed(capacities: Sequence[Capacity], interference: Interference) -> tuple[Capacity, ...]:
    """The capacities beside the worst neighbours that each partition could get: what every policy then plans with."""
    models = sorted({capacity.model for capacity in capacities})
    return tuple(
        replace(
            capacity, points=tuple(_slowed(capacity.model, point, models, interference) for point in capacity.points)
        )
        for capacity in capacities
    )


def _slowed(model: str, point: Point, models: Sequence[str], interference: Interference) -> Point:
    slow = interference.worst(model, point.share_pct, models) if point.share_pct < 99.9 else 1.0
    return replace(point, latency_ms=point.latency_ms * slow, throughput_per_s=point.throughput_per_s / slow)
