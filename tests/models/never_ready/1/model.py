"""Loads for ever."""

import threading
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        threading.Event().wait()

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"output": inputs["input"]}
