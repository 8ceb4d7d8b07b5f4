"""Small PyTorch modules to convert: good ones of every kind, and bad ones that a conversion must refuse."""

import warnings

import torch
from torch import nn

from efserve.converter.torchvision_zoo import import_torchvision


class Linear(nn.Module):
    """[n, 4] -> [n, 3]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.linear(x)
        return answer


class TwoInputs(nn.Module):
    """a FP32 [n, 3], ids INT64 [n, 3] -> a dict of three outputs."""

    def forward(self, a: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + ids, "mean": a.mean(1), "twice": ids * 2}


class Pair(nn.Module):
    """ids INT64 [n, k] -> a list of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(8, 4)

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        return [self.embedding(ids).mean(1), ids]


class Fourier(nn.Module):
    """[n, k] -> [n, k / 2 + 1], by an operator that only torch's newer exporter knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum: torch.Tensor = torch.fft.rfft(x)
        return spectrum.abs()


class FixedBatch(nn.Module):
    """Multiplies by its batch as a Python number, which a trace keeps for ever."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * int(x.shape[0])


class Branch(nn.Module):
    """Takes a way that depends on the data; a trace keeps one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 or x.sum() > 1e9 else x - 1


class Flattens(nn.Module):
    """Mixes the batch into its only row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, -1)


class Raises(nn.Module):
    """Cannot run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("the moon is\nin the wrong house")


class AnswersText(nn.Module):
    """Answers no tensor."""

    def forward(self, x: torch.Tensor) -> str:
        return "hello"


def scripted() -> torch.jit.ScriptModule:
    """A scripted module whose branch on the data is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of torch.jit
        module: torch.jit.ScriptModule = torch.jit.script(Branch())
    return module


def vision_transformer() -> nn.Module:
    """[n, 3, 32, 32] -> [n, 1000]; in half precision onnxruntime's optimizers need care with it."""
    torch.manual_seed(0)
    models = import_torchvision()
    module = models.vision_transformer.VisionTransformer(32, 16, 1, 2, 32, 32)
    nn.init.normal_(module.heads.head.weight)  # torchvision makes it zero
    made: nn.Module = module
    return made


def number() -> int:
    """Returns no module."""
    return 3


def fails() -> nn.Module:
    """Raises instead of returning a module."""
    raise RuntimeError("no licence")


class TinyCnn(nn.Module):
    """[n, 1, 28, 28] -> [n, 10] by two convolutions with a batch norm; the same weights at each call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.scores = nn.Linear(9216, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores(self.features(images).flatten(1))  # type: ignore[no-any-return]  # torch
