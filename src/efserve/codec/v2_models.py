"""The protocol's JSON about models and the server: metadata, statistics, repository index."""

from collections.abc import Iterable, Sequence
from typing import Any

from efserve.counters import BatchStats, ModelCounters
from efserve.model_config import ModelConfig
from efserve.tensors import TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "cuda_shared_memory",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
    "trace",
)

# Triton's platform names, which clients show and some compare.
PLATFORMS = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_libtorch", "tensorrt": "tensorrt_plan"}


def server_metadata(name: str, version: str) -> dict[str, Any]:
    """Answer of `GET /v2`."""
    return {"name": name, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(config: ModelConfig, engine: str, versions: Sequence[str]) -> dict[str, Any]:
    """Answer of `GET /v2/models/M`; shapes begin with -1 where the model batches."""
    return {
        "name": config.name,
        "versions": list(versions),
        "platform": PLATFORMS.get(engine, engine),
        "inputs": [_tensor(config, spec) for spec in config.inputs],
        "outputs": [_tensor(config, spec) for spec in config.outputs],
    }


def _tensor(config: ModelConfig, spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(config.input_shape(spec))}


def statistics(models: Iterable[tuple[str, str, ModelCounters]]) -> dict[str, Any]:
    """Answer of the statistics routes for (name, version, counters) of each model version."""
    return {"model_stats": [_model_statistics(name, version, counters) for name, version, counters in models]}


def _model_statistics(name: str, version: str, counters: ModelCounters) -> dict[str, Any]:
    done = counters.successes
    computed = done - counters.cache_hits
    return {
        "name": name,
        "version": version,
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.rows,
        "execution_count": counters.executions,
        "inference_stats": {
            "success": _duration(done, counters.success_ns),
            "fail": _duration(sum(counters.failures.values()), counters.failures_ns),
            "queue": _duration(done, counters.queue_ns),
            "compute_input": _duration(computed, counters.compute_input_ns),
            "compute_infer": _duration(computed, counters.compute_infer_ns),
            "compute_output": _duration(computed, counters.compute_output_ns),
            "cache_hit": _duration(counters.cache_hits, counters.cache_hit_ns),
            "cache_miss": _duration(counters.cache_misses, counters.cache_miss_ns),
        },
        "response_stats": {},
        "batch_stats": [_batch_statistics(rows, batch) for rows, batch in sorted(counters.batches.items())],
        "memory_usage": [],
    }


def _batch_statistics(rows: int, batch: BatchStats) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(batch.executions, batch.input_ns),
        "compute_infer": _duration(batch.executions, batch.infer_ns),
        "compute_output": _duration(batch.executions, batch.output_ns),
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def index_entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    """One entry of the repository index; what is empty is left out."""
    entry = {"name": name, "version": version, "state": state, "reason": reason}
    return {key: value for key, value in entry.items() if value}
