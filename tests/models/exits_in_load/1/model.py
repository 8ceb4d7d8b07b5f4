"""Ends its process while it loads, with some last words."""

import sys
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        sys.stderr.write("no licence found\n")
        sys.exit(3)

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"output": inputs["input"]}
