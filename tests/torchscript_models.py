"""Tiny TorchScript models; importing this needs torch. Each takes x FP32 [n, 4]."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class InTuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class InList(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x + 1, x * 2, x]


class InDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"other": x, "second": x * 2, "first": x + 1}


class InPlace(nn.Module):
    """Writes to its input, and has one output only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


class OneRow(nn.Module):
    """Answers one row, whatever the batch."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[:1]


class Double(nn.Module):
    """Answers in another type than its input's."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.double()


class Net(nn.Module):
    """A convolution with its normalisation, and the mean; takes image FP32 [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self.conv(image)).relu(), image.mean((1, 2, 3))


def save(repository: Path, module: nn.Module) -> Path:
    """Script the module into a repository as version 1; its version folder."""
    folder = repository / "script" / "1"
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is said to be deprecated
        torch.jit.save(torch.jit.script(module.eval()), str(folder / "model.pt"))
    return folder
