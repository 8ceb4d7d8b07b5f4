"""Loads for ever; opens the fifo of its parameter `started` first, so that a test knows that it loads."""

import threading
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        if "started" in config.parameters:
            with Path(config.parameters["started"]).open("w"):
                pass
        threading.Event().wait()

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"output": inputs["input"]}
