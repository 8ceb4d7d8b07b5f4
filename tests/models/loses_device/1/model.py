"""Loses its device in a run, as a GPU is lost after some faults."""

from pathlib import Path

from efserve.errors import DeviceLost
from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        pass

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        raise DeviceLost("the GPU is lost to this worker: an illegal memory access")
