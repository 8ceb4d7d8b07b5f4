"""resnet50 in each precision beside onnxruntime in fp32: how much faster, and how often the answer is the same one.

    python benchmarks/precision.py [--weights FILE] [--steps 220] [--rounds 12]
    python benchmarks/precision.py --train FILE    trains and ends: for --weights, where training shall not disturb

Random weights have no answers to agree about, and published ones cannot be had everywhere. So, unless --weights names a
state dict, resnet50 is trained here for a few minutes to tell 16 textures apart (waves of 8 directions in 2 sizes under
coloured spots and noise, 64x64 pixels, batches of 24, SGD), and the statistics of its batch norms are taken anew at
224x224. That makes weights like trained ones: a top-1 with a margin, ranges that depend on the input, features that
matter. It is told apart from what it cannot show: the loss in accuracy on photographs.

int8 is calibrated on 96 such images and on nothing else; agreement is with the fp32 file, on other ones. Every engine
runs in this process on one thread, all in turns; the ratio is the median over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from efserve.converter.convert import convert
from efserve.converter.job import ConvertJob
from efserve.converter.torchvision_zoo import import_torchvision
from efserve.engines.base import Engine, Source, load
from efserve.partition import Partition
from efserve.precision import Precision
from efserve.repository import scan

CLASSES, SIDE = 16, 224
CALIBRATION, CALIBRATION_SEED, JUDGED, JUDGED_SEED = 96, 3, 256, 99
BATCHES = (1, 8)


@dataclass(frozen=True, slots=True)
class Way:
    """A file in a precision, by an engine."""

    name: str
    engine: Engine


def textures(rng: np.random.Generator, count: int, side: int) -> tuple[Any, Any]:
    """Images [count, 3, side, side] and the class of each; waves have the same length in pixels at every size."""
    classes = rng.integers(0, CLASSES, count)
    line = np.arange(side, dtype=np.float32) / 96
    down, right = np.meshgrid(line, line, indexing="ij")
    images = np.empty((count, 3, side, side), np.float32)
    for image, kind in zip(images, classes, strict=True):
        angle = np.pi * (kind % 8) / 8 + rng.normal(0, 0.08)
        frequency = (5 if kind < 8 else 12) * np.exp(rng.normal(0, 0.1))
        along = np.cos(angle) * right + np.sin(angle) * down
        wave = np.sin(2 * np.pi * frequency * along + rng.uniform(0, 2 * np.pi))
        x, y = rng.uniform(size=2) * line[-1]
        spot = np.exp(-((right - x) ** 2 + (down - y) ** 2) / 0.05)
        image[:] = wave * (1 + 0.3 * rng.normal(0, 1, (3, 1, 1))) + spot * rng.normal(0, 1, (3, 1, 1))
        image += rng.normal(0, 0.5, image.shape)
    return images, classes


def train(steps: int, path: Path) -> None:
    """Writes the weights of a resnet50 that tells the textures apart."""
    torch.manual_seed(0)
    model = import_torchvision().resnet50(zero_init_residual=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.04, total_steps=steps)
    rng = np.random.default_rng(0)
    for step in range(steps):
        images, classes = map(torch.from_numpy, textures(rng, 24, 64))
        with torch.autocast("cpu", torch.bfloat16):
            answers = model(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(answers.float(), classes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"training: step {step} of {steps}, loss {loss.item():.2f}", flush=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of what follows
    with torch.no_grad():
        for _ in range(20):
            model(torch.from_numpy(textures(rng, 16, SIDE)[0]))
    torch.save(model.state_dict(), path)


def make(weights: Path, repository: Path) -> None:
    """resnet50, resnet50_bf16 and resnet50_int8."""
    samples = repository.parent / "samples.npy"
    np.save(samples, textures(np.random.default_rng(CALIBRATION_SEED), CALIBRATION, SIDE)[0])
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    for precision in precisions:
        given = "" if precision == "fp32" else str(samples)
        convert(
            ConvertJob("resnet50", repository, weights=str(weights), precision=precision, calibration=given),
            lambda step: None,
        )


def ways(repository: Path) -> list[Way]:
    """Every file by every engine that runs it, onnxruntime in fp32 first."""
    found = []
    for name in ("resnet50", "resnet50_bf16", "resnet50_int8"):
        (folder,) = scan([repository], [name]).models
        for engine in ("onnx", "openvino", "torchscript"):
            if engine not in folder.engines(1) or (name == "resnet50_bf16" and engine == "onnx"):
                continue
            version = folder.resolve(1, engine)
            loaded = load(engine, Source(version.folder, version.config, Partition(threads=1)))
            found.append(Way(f"{name.partition('_')[2] or 'fp32'} {engine}", loaded))
    return found


def times_ms(all_ways: Sequence[Way], rows: int, rounds: int) -> list[list[float]]:
    """The times of each way, in turns."""
    images = textures(np.random.default_rng(1), rows, SIDE)[0]
    times: list[list[float]] = [[] for _ in all_ways]
    for way in all_ways:
        for _ in range(3):
            way.engine.infer([images])
    for _ in range(rounds):
        for way, own in zip(all_ways, times, strict=True):
            begun = time.perf_counter()
            way.engine.infer([images])
            own.append(1e3 * (time.perf_counter() - begun))
    return times


def judge(all_ways: Sequence[Way]) -> list[tuple[float, float, float]]:
    """Of each way: top-1 equal to that of the first way, equal to the true class, and the mean difference of scores."""
    images, classes = textures(np.random.default_rng(JUDGED_SEED), JUDGED, SIDE)
    scores: list[list[Any]] = [[] for _ in all_ways]
    for at in range(0, JUDGED, 8):
        for way, own in zip(all_ways, scores, strict=True):
            own.append(np.array(way.engine.infer([images[at : at + 8]])[0]))
    exact = np.concatenate(scores[0])
    found = []
    for own in scores:
        mine = np.concatenate(own)
        same = float(np.mean(mine.argmax(1) == exact.argmax(1)))
        found.append((same, float(np.mean(mine.argmax(1) == classes)), float(np.abs(mine - exact).mean())))
    return found


def main() -> None:
    """Parses the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="State dict of a resnet50 with 1000 classes; else it is trained.")
    parser.add_argument("--train", type=Path, help="Only train, and write the weights to this file.")
    parser.add_argument("--steps", type=int, default=220, help="Of the training.")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    if options.train is not None:
        train(options.steps, options.train)
        return
    with tempfile.TemporaryDirectory(prefix="efserve-") as folder:
        weights = options.weights or Path(folder) / "resnet50.pth"
        if options.weights is None:
            train(options.steps, weights)
        make(weights, Path(folder) / "models")
        torch.set_num_threads(1)
        found = ways(Path(folder) / "models")
        print(f"{'way':20} {'batch':>5} {'ms':>8} {'times fp32 onnx':>15}")
        for rows in BATCHES:
            times = times_ms(found, rows, options.rounds)
            for way, own in zip(found, times, strict=True):
                gain = statistics.median(first / mine for first, mine in zip(times[0], own, strict=True))
                print(f"{way.name:20} {rows:5} {statistics.median(own):8.1f} {gain:15.2f}", flush=True)
        print(f"\n{'way':20} {'same top-1':>10} {'accuracy':>9} {'mean difference':>16}")
        for way, (same, right, gap) in zip(found, judge(found), strict=True):
            print(f"{way.name:20} {same:10.1%} {right:9.1%} {gap:16.4f}")


if __name__ == "__main__":
    main()
