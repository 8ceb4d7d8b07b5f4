"""Counts against torch's own flop counter and against published figures, on models exported from torch."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from efserve.converter.convert import convert
from efserve.converter.job import ConvertJob
from efserve.converter.torch_model import quiet
from efserve.graph_cost.count import count
from efserve.graph_cost.graph import read_graph


class SelfAttention(nn.Module):
    """[n, t, 32] -> [n, t, 32] with 4 heads and a layer norm, products written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        q, k, v = self.project(self.norm(x)).reshape(rows, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        answer: torch.Tensor = x + self.out((scores @ v).transpose(1, 2).reshape(rows, tokens, 32))
        return answer


NETWORKS = {
    "perceptron": (nn.Sequential(nn.Linear(20, 50), nn.GELU(), nn.Linear(50, 10)), (3, 20)),
    "grouped": (nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=4), nn.BatchNorm2d(16), nn.SiLU()), (2, 8, 15, 13)),
    "audio": (nn.Sequential(nn.Conv1d(4, 8, 9, dilation=2), nn.ReLU(), nn.MaxPool1d(4)), (2, 4, 100)),
    "upward": (nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.Upsample(scale_factor=2.0)), (2, 8, 7, 7)),
    "attention": (SelfAttention(), (2, 11, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_counts_the_same(name: str, tmp_path: Path) -> None:
    network, shape = NETWORKS[name]
    network.eval()
    example = torch.zeros(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    path = tmp_path / "model.onnx"
    with quiet(), torch.no_grad():
        torch.onnx.export(
            network, (example,), str(path), input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False
        )
    cost = count(read_graph(path), {"x": shape})
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.total_operations > 2 * cost.macs
    assert cost.guessed == cost.left_out == {}


def test_a_published_figure(tmp_path: Path) -> None:
    """MobileNetV2: 300 million multiply-adds, 3.4 million parameters (Sandler et al., 2018, table 4)."""
    job = ConvertJob("mobilenet_v2", tmp_path, weights="none", format="onnx")
    folder = convert(job, lambda _: None).folder
    cost = count(read_graph(folder / "model.onnx"), {"input": (4, 3, 224, 224)})
    assert cost.macs / 4 == pytest.approx(300e6, rel=0.01)
    assert cost.parameters == pytest.approx(3.4e6, rel=0.05)
    assert cost.guessed == cost.left_out == {}
