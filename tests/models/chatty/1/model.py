"""Floods stdout and stderr while it loads and with each batch, with bytes that are no text."""

import os
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self._flood()

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self._flood()
        return {"output": inputs["input"]}

    def _flood(self) -> None:
        for fd in (1, 2):
            os.write(fd, b"\xff\x00\x01garbage" * 50_000)
            os.write(fd, b"\nI have so much to say\n")
