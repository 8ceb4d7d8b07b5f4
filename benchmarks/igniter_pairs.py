"""Imports iGniter's measured pairs on a V100: a file for `efserve plan --interference`, and the error of the fit.

    python benchmarks/igniter_pairs.py gpulet.config [-o pairs.json]

`gpulet.config` stands in `i-Gniter/Profile/tools` of the repository icloud-ecnu/igniter: a JSON object per line, with
latency (ms), l2cache and dram (percent) of each model by batch and share (percent), and 750 runs of two models side by
side: [model, model, batch, batch, share of the first, latency (ms), latency (ms)]. Prints the slowdowns, and how far
the linear model is off for pairs of models left out of its fit: as plans use it, and with a load for each batch.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from efserve.planning.interference import Load, Measurements, Pair, fit

Table = dict[str, dict[str, str]]  # batch -> share -> a number


@dataclass(frozen=True, slots=True)
class Side:
    """One model of a measured pair."""

    model: str
    batch: int
    share_pct: int
    latency_ms: float


def main() -> None:
    """Reads, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="gpulet.config of the repository icloud-ecnu/igniter")
    parser.add_argument("-o", "--output", type=Path, help="write the pairs to this file")
    options = parser.parse_args()
    solo, sides = read(options.data)
    measured = [(me, you, me.latency_ms / alone_ms(solo, me)) for me, you in sides]
    slowdowns = np.array([slowdown for _, _, slowdown in measured])
    print(f"{len(measured) // 2} runs: slowdown {slowdowns.mean():.2f} on average, {slowdowns.max():.2f} at most")
    by_model = Measurements(
        {model: whole_load(tables) for model, tables in solo.items()},
        tuple(Pair(me.model, me.share_pct, you.model, you.share_pct, slowdown) for me, you, slowdown in measured),
    )
    by_batch = Measurements(
        {f"{s.model} {s.batch}": whole_load(solo[s.model], str(s.batch)) for s, _, _ in measured},
        tuple(
            Pair(f"{me.model} {me.batch}", me.share_pct, f"{you.model} {you.batch}", you.share_pct, slowdown)
            for me, you, slowdown in measured
        ),
    )
    for title, found in (("a load per model", by_model), ("a load per model and batch", by_batch)):
        fitted = fit(found.pairs, found.loads)
        assert fitted.error_pct is not None
        print(
            f"{title}: pairs left out of the fit are off by {fitted.error_pct:.1f} % on average, "
            f"{fitted.p90_error_pct:.1f} % at most for 90 % of them; always the mean slowdown: "
            f"{100 * np.abs(slowdowns.mean() / slowdowns - 1).mean():.1f} %"
        )
    if options.output:
        options.output.write_bytes(msgspec.json.encode(by_model))
        print(f"-> {options.output}")


def read(path: Path) -> tuple[dict[str, dict[str, Table]], list[tuple[Side, Side]]]:
    """The tables of each model alone, and each run of two seen from either side."""
    solo: dict[str, dict[str, Table]] = {}
    runs: list[tuple[str, str, int, int, int, float, float]] = []
    for line in path.read_text().splitlines():
        for model, tables in msgspec.json.decode(line).items():
            if model != "interference":
                solo.setdefault(model, {}).update(tables)
            elif "latency" in tables:
                runs = tables["latency"]
    sides = []
    for first, second, first_batch, second_batch, share, first_ms, second_ms in runs:
        one, other = Side(first, first_batch, share, first_ms), Side(second, second_batch, 100 - share, second_ms)
        sides += [(one, other), (other, one)]
    return solo, sides


def alone_ms(solo: dict[str, dict[str, Table]], side: Side) -> float:
    """What the same batch takes on the same share beside nobody."""
    return float(solo[side.model]["latency"][str(side.batch)][str(side.share_pct)])


def whole_load(tables: dict[str, Table], batch: str = "") -> Load:
    """What a model, or one batch of it, asks of the memory system: the greatest of its batches."""
    return Load(*(min(1.0, max(loads(tables[name], batch))) for name in ("l2cache", "dram")))


def loads(table: Table, batch: str) -> list[float]:
    """Of each batch what it asks for over its share, the largest below 100 %: there only a batch of 1 was measured."""
    largest = max((int(share) for shares in table.values() for share in shares if int(share) < 100), default=100)
    return [float(shares[str(largest)]) / largest for at, shares in table.items() if at == (batch or at)]


if __name__ == "__main__":
    main()
