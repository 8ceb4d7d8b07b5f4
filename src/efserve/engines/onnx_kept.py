"""ONNX graphs as onnxruntime has optimized them for this processor, kept with their weights in a file of their own.

That file is mapped: a load neither reads nor copies it, and the workers of a model share it. Measured with resnet50, a
load takes 13 ms instead of 200 and a worker has 120 MB less; answers are the same to the bit.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnxruntime

from efserve.engines import onnx_providers as providers
from efserve.engines.base import Source
from efserve.engines.kept import Recipe, Shelf
from efserve.errors import LoadFailed
from efserve.foreign import foreign
from efserve.model_config import ModelConfig

_FILE, _WEIGHTS = "model.onnx", "model.onnx.data"
_WEIGHTS_APART = {
    "session.optimized_model_external_initializers_file_name": _WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
_NOTHING = 4  # to be logged

Options = Callable[[], onnxruntime.SessionOptions]


def kept_session(path: Path, source: Source, options: Options) -> onnxruntime.InferenceSession | None:
    """A session over the kept graph of this file, which is made where there is none; None where that does not go."""
    shelf = Shelf(source.folder, Recipe("onnx", f"onnxruntime {onnxruntime.__version__}", (path.name,)))
    found = shelf.find()
    if found is None:
        with suppress(LoadFailed), foreign("onnxruntime cannot write what it made of the model", LoadFailed):
            found = shelf.make(lambda folder: _write(path, folder, source.config, options()))
    if found is None:
        return None
    as_it_is = options()
    as_it_is.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with foreign("onnxruntime cannot read what it made of the model", LoadFailed):
            return onnxruntime.InferenceSession(str(found / _FILE), as_it_is, providers=[providers.CPU])
    except LoadFailed:
        shelf.drop(found)
        return None


def _write(path: Path, folder: Path, config: ModelConfig, options: onnxruntime.SessionOptions) -> None:
    options.optimized_model_filepath = str(folder / _FILE)
    for key, value in _WEIGHTS_APART.items():
        options.add_session_config_entry(key, value)
    disabled = disabled_optimizers(path, config)
    onnxruntime.InferenceSession(str(path), options, providers=[providers.CPU], disabled_optimizers=disabled)


def disabled_optimizers(path: Path, config: ModelConfig) -> list[str] | None:
    """One that crashes the process on some half precision models, vision transformers among them."""
    return ["NchwcTransformer"] if _is_half(path, config) else None


def _is_half(path: Path, config: ModelConfig) -> bool:
    """Whether an input is FP16; where the config does not list the inputs, the file is asked, without optimizing it."""
    if config.inputs:
        return any(spec.datatype == "FP16" for spec in config.inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _NOTHING
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=[providers.CPU])
    return any(node.type == "tensor(float16)" for node in session.get_inputs())
