"""What a worker is asked to be, and what it says of itself when it is ready."""

from dataclasses import dataclass
from pathlib import Path

from efserve.engines.base import Remark
from efserve.model_config import ModelConfig
from efserve.partition import Obtained, Partition


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One instance of one model version on one partition."""

    config: ModelConfig  # as read from config.pbtxt, possibly incomplete
    version: str
    folder: Path  # the version folder that holds model.onnx, model.pt or model.py
    engine: str  # onnx, torchscript, openvino, tensorrt, python: already decided
    partition: Partition
    max_batch: int  # max_batch_size of a config that is completed
    force_max_batch: int = 0  # > 0: max_batch_size of a model that batches, whatever its config says
    warmup: bool = True  # run every batch size (1, 2, 4, ..., max) on zeros before READY
    spin: bool = False  # engine threads spin while they wait
    strict_provider: bool = False  # refuse a model of which a part would not run on the partition's device
    slots: int = 2  # batches that the worker may hold: one running, the others waiting


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker tells when it is ready; `start_s` is added by its handle."""

    config: ModelConfig  # completed by the model file
    pid: int
    load_s: float  # engine and file
    warmup_s: float
    start_s: float  # from the start of the process to READY
    engine_version: str  # "onnxruntime 1.20.0"
    obtained: Obtained  # of the partition that was asked for
    remarks: tuple[Remark, ...] = ()  # of the engine: how the model runs
    import_s: float = 0.0  # of the engine's library, which is a part of `load_s`
