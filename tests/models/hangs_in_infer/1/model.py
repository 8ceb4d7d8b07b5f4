"""Never answers a batch; opens the fifo of its parameter `started` first, so that a test knows that it hangs."""

import threading
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self._started = config.parameters.get("started")

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        if self._started:
            with Path(self._started).open("w"):
                pass
        threading.Event().wait()
        return inputs
