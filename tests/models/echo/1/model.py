"""Answers with its inputs: strings and numbers of any length."""

from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        pass

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {f"{name}_out": array for name, array in inputs.items()}
