"""Is killed with a batch in hand, as by the kernel when memory runs out."""

import os
import signal
from pathlib import Path

from efserve.model_config import ModelConfig
from efserve.tensors import Array


class Model:
    def __init__(self, config: ModelConfig, folder: Path) -> None:
        pass

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}
