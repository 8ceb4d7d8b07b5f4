"""Trains the digits model that efserve ships, on scikit-learn's 1,797 handwritten digits of 8x8 pixels.

`python examples/digits/train.py` writes `model_dir/digits` and prints the accuracy on the fifth of the images that
training never saw; `--samples` also writes some of those as files to try the model on. Needs `efserve[torch,dev]`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from efserve.converter.convert import convert_torch
from efserve.converter.job import ConvertJob
from efserve.converter.torch_model import TorchModel
from efserve.imaging import Preprocess
from efserve.tensors import TensorSpec

SEED = 0
EPOCHS = 60
BATCH = 64
PEAK_LEARNING_RATE = 4e-3
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_SCALE = 8  # an 8x8 image is hard to see: samples are drawn 8 times as large


class Digits(nn.Module):
    """Two convolutions and two linear layers, 21,546 weights; answering probabilities, or logits in training."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits if self.training else logits.softmax(dim=1)


@dataclass(frozen=True, slots=True)
class Images:
    """Images [count, 1, 8, 8] in 0..1 and the digit of each."""

    pixels: torch.Tensor
    digits: torch.Tensor


def load_images() -> tuple[Images, Images]:
    """Four fifths to train on, one fifth held out; the same at every call."""
    data, digits = load_digits(return_X_y=True)
    pixels = (data / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(pixels, digits, test_size=0.2, random_state=SEED, stratify=digits)
    trained, held_out, trained_digits, held_out_digits = map(torch.from_numpy, parts)
    return Images(trained, trained_digits), Images(held_out, held_out_digits)


def train(images: Images) -> Digits:
    """A model trained on the images, each batch shifted by up to one pixel."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in one order: the same weights at every run
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = EPOCHS * -(-len(images.digits) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for picked in torch.split(torch.randperm(len(images.digits)), BATCH):
            padded = functional.pad(images.pixels[picked], (1, 1, 1, 1))
            top, left = torch.randint(0, 3, (2,)).tolist()
            loss = functional.cross_entropy(model(padded[:, :, top : top + 8, left : left + 8]), images.digits[picked])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: Digits, images: Images) -> float:
    """Share of the images whose digit gets the highest score."""
    with torch.no_grad():
        return float((model(images.pixels).argmax(dim=1) == images.digits).float().mean())


def write_samples(images: Images, folder: Path) -> None:
    """One held-out image of each digit as PNG, and one more as .npy and .json; `labels.json` says which is which."""
    labels = {}
    for digit, word in enumerate(WORDS):
        index = int((images.digits == digit).nonzero()[0])
        pixels = np.round(images.pixels[index, 0].numpy() * 255).astype(np.uint8)
        name = f"{word}.png"
        Image.fromarray(pixels.repeat(SAMPLE_SCALE, 0).repeat(SAMPLE_SCALE, 1)).save(folder / name, optimize=True)
        labels[name] = str(digit)
    for index, name in enumerate(("sample.npy", "sample.json")):
        values = images.pixels[index].numpy()
        if name.endswith(".npy"):
            np.save(folder / name, values)
        else:
            (folder / name).write_text(json.dumps(values.tolist()) + "\n", encoding="utf-8")
        labels[name] = str(int(images.digits[index]))
    (folder / "labels.json").write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, default=Path("model_dir"), help="default: model_dir")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="also write sample images into FOLDER")
    options = parser.parse_args()
    seen, held_out = load_images()
    model = train(seen)
    print(f"accuracy on {len(held_out.digits)} held-out images: {accuracy(model, held_out):.2%}")
    job = ConvertJob("digits", model_repository=options.model_repository, name="digits", max_batch=32, force=True)
    described = TorchModel(
        model,
        inputs=(TensorSpec("input", "FP32", (1, 8, 8)),),
        output_names=("scores",),
        labels=tuple(map(str, range(10))),
        parameters=Preprocess(interpolation="box").parameters(),  # a larger image is averaged down to 8x8
    )
    result = convert_torch(described, job, on_step=print)
    for found in result.parity:
        print(f"{found.format} at batch {found.batch}: differs by at most {found.max_abs:.2g}")
    if options.samples is not None:
        write_samples(held_out, options.samples)


if __name__ == "__main__":
    main()
