"""What an engine is, and how one is loaded by name.

An engine runs one model file on one partition. It sees numpy arrays in the order of the config and nothing of requests,
batching or shared memory.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from efserve.errors import ConfigError, LoadFailed
from efserve.model_config import DEFAULT_MAX_BATCH, FileSignature, ModelConfig, complete
from efserve.partition import Partition
from efserve.tensors import Array


def _say_nothing(text: str) -> None:
    pass


_SUFFIXES = {".onnx", ".pt", ".py", ".plan"}  # of which each means a kind of model


@dataclass(frozen=True, slots=True)
class Remark:
    """What the user should know of how a model runs."""

    text: str
    is_warning: bool = False  # it runs, but not as it was meant to


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a model on disk, and how it shall run."""

    folder: Path  # the version folder that holds model.onnx, model.pt or model.py
    config: ModelConfig  # as written, possibly incomplete
    partition: Partition
    max_batch: int = DEFAULT_MAX_BATCH  # max_batch_size of a config that is completed
    force_max_batch: int = 0  # > 0: max_batch_size of a model that batches, whatever its config says
    spin: bool = False  # engine threads spin while they wait
    strict_provider: bool = False  # refuse a model of which a part would not run on the device that was asked for
    keeps: bool = True  # engines may keep optimized forms of the model, beside it or in the user's cache
    on_progress: Callable[[str], object] = _say_nothing  # told how far a long load is, every few seconds

    def file(self, default_name: str, *also: str) -> Path:
        """The model file: the config's, unless its suffix is another engine's; LoadFailed when there is none.

        An engine takes files with the suffix of `default_name`, those `also` given, and those of no engine.
        """
        given = self.config.default_model_filename
        is_others = Path(given).suffix in _SUFFIXES - {Path(default_name).suffix, *also}
        path = self.folder / (given if given and not is_others else default_name)
        if not path.is_file():
            there = ", ".join(sorted(entry.name for entry in self.folder.iterdir())) if self.folder.is_dir() else ""
            raise LoadFailed(f"there is no file {path.name} in {self.folder}; files there: {there or 'none'}")
        return path

    def settle(self, signature: FileSignature) -> ModelConfig:
        """The config that runs: completed by the file and checked against it."""
        config = complete(self.config, signature, self.max_batch)
        if config.batches and self.force_max_batch:
            config = config.with_max_batch(self.force_max_batch)
        return config


class Engine(Protocol):
    """A loaded model."""

    config: ModelConfig  # complete
    version: str  # of the library, for people: "onnxruntime 1.20.0"
    warmup_runs: int  # runs of one batch size until its latency is steady; 0: needs no warm-up
    device_ns: int  # how long the GPU worked on the last run by its own clock; 0: not known

    @property
    def remarks(self) -> Sequence[Remark]:
        """How the model runs; complete after the warm-up."""
        ...

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Outputs in the order of the config for inputs in the order of the config; may raise anything.

        Inputs are valid during the call only. BYTES are object arrays of `bytes`; as outputs they may be any strings.
        """
        ...

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """A call that computes from these inputs right into these outputs, saving copies; None: use `infer`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class _Module(Protocol):
    def load(self, source: Source) -> Engine: ...


_LIBRARIES = {  # engine -> the libraries that it needs, and how to get them
    "onnx": ("onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino", "pip install 'efserve[openvino]'"),
    "torchscript": ("torch", "pip install 'efserve[torch]'"),
    "tensorrt": ("tensorrt, pycuda", "pip install 'efserve[tensorrt]'"),
    "python": ("", ""),
}


_GPU_PACKAGES = {"onnx": "onnxruntime-gpu", "torchscript": "torch"}  # engine -> the package that can use GPUs


def can_use_gpus(name: str) -> bool:
    """Whether the engine's library is one for GPUs, as far as its package tells without being loaded."""
    if name == "tensorrt":
        return True
    from importlib import metadata  # it brings a parser of mails, which no worker needs

    try:
        return "+cpu" not in metadata.version(_GPU_PACKAGES[name])
    except (KeyError, metadata.PackageNotFoundError):
        return False


def load(name: str, source: Source) -> Engine:
    """The model of `source` loaded by engine `name`; LoadFailed or ConfigError, or whatever the library raises.

    With the shapes of its file: `reshaped.load` is for configs that may say otherwise.
    """
    module = import_engine(name)
    if source.config.optional_inputs and name != "python":
        raise ConfigError(
            f"config of '{source.config.name}': input '{source.config.optional_inputs[0]}' is optional, which only "
            "models of the python engine may say"
        )
    return module.load(source)


def import_engine(name: str) -> _Module:
    """The engine's module, and with it the library that it needs; LoadFailed where that is missing."""
    if name not in _LIBRARIES:
        raise LoadFailed(f"there is no engine '{name}'; choose one of {', '.join(_LIBRARIES)}")
    library, remedy = _LIBRARIES[name]
    try:
        return cast(_Module, importlib.import_module(f"efserve.engines.{name}"))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in library.split(", "):
            raise
        raise LoadFailed(f"engine '{name}' needs {missing}, which is not installed: {remedy}") from error
