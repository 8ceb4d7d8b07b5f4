"""Takes `delay_ms` (a parameter of the config) for each batch."""

import time
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self._delay_s = float(config.parameters["delay_ms"]) / 1e3

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        time.sleep(self._delay_s)
        return {"output": inputs["input"]}
