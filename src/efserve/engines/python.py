"""Models written in Python: `model.py` in the version folder, with a class `Model`.

    class Model:
        def __init__(self, config: ModelConfig, folder: Path) -> None: ...   # load
        def infer(self, inputs: dict[str, Array]) -> dict[str, Array]: ...   # one batch

Arrays carry the batch dimension where the config batches; BYTES are object arrays of `bytes`. Inputs are valid during
the call only. `close()` is called before the worker ends, where there is one. The config must list inputs and outputs.
"""

import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efserve.engines.base import Remark, Source
from efserve.errors import InferenceFailed, LoadFailed
from efserve.model_config import FileSignature, ModelConfig
from efserve.tensors import ABSENT, Array


class PythonEngine:
    """One instance of a user's `Model`."""

    device_ns = 0
    remarks: Sequence[Remark] = ()
    warmup_runs = 0  # it may do anything, so it sees only what clients send; it can warm itself up in `__init__`

    def __init__(self, model: Any, config: ModelConfig) -> None:
        self.config = config
        self.version = f"python {platform.python_version()}"
        self._model = model
        self._input_names = [spec.name for spec in config.inputs]
        self._output_names = [spec.name for spec in config.outputs]

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Call the model's `infer`, without the optional inputs that are absent.

        InferenceFailed when an output of the config is not in its answer.
        """
        given = {name: array for name, array in zip(self._input_names, inputs, strict=True) if array is not ABSENT}
        outputs = self._model.infer(given)
        if not isinstance(outputs, dict):
            raise InferenceFailed(f"infer() of model.py returned {type(outputs).__name__}, expected a dict of outputs")
        for name in self._output_names:
            if name not in outputs:
                raise InferenceFailed(f"output '{name}' is missing; infer() of model.py returned {list(outputs)}")
        return [np.asarray(outputs[name]) for name in self._output_names]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """Never: the model makes its own arrays."""

    def close(self) -> None:
        """Call the model's `close` where it has one."""
        if hasattr(self._model, "close"):
            self._model.close()


def load(source: Source) -> PythonEngine:
    """Import `model.py` and make its `Model`; its folder is importable, so that it may be split over files."""
    config = source.settle(FileSignature())
    model = _import(source.file("model.py"))
    return PythonEngine(model(config, source.folder), config)


def _import(path: Path) -> Callable[[ModelConfig, Path], object]:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("efserve_model", path)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    if not hasattr(module, "Model"):
        raise LoadFailed(f"{path} has no class Model; it needs Model(config, folder) with infer(inputs) -> outputs")
    model: Callable[[ModelConfig, Path], object] = module.Model
    return model
