"""Which of onnxruntime's execution providers run a model: what is asked for, and what came of each node.

onnxruntime runs on the CPU whatever a provider does not take, without a word; here it is told, or refused.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efserve.engines.base import Remark
from efserve.engines.shape_ranges import ShapeRange
from efserve.errors import ConfigError, LoadFailed
from efserve.partition import Partition

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

PARAMETER = "execution_provider"  # of config.pbtxt: which provider comes first on a GPU
RECORD = "session.record_ep_graph_assignment_info"  # session entry: remember who runs each node
NO_CPU = "session.disable_cpu_ep_fallback"  # session entry: onnxruntime's own refusal, which names no node

_CHOICES = {"cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}
_SHOWN_OPERATORS = 8

Providers = list[str | tuple[str, dict[str, str]]]


@dataclass(frozen=True, slots=True)
class Assigned:
    """One node of the graph and the provider that runs it."""

    provider: str
    operator: str  # ai.onnx operators by their name, others with their domain in front


def wanted(partition: Partition, parameters: dict[str, str], model: str) -> tuple[str, ...]:
    """Names of the providers that shall run a model, the most wanted first; ConfigError for an unknown choice."""
    if not partition.is_gpu:
        return (CPU,)
    choice = parameters.get(PARAMETER, "cuda")
    if choice not in _CHOICES:
        raise ConfigError(
            f"config of '{model}': parameter {PARAMETER} is '{choice}', expected one of {', '.join(_CHOICES)}"
        )
    return _CHOICES[choice]


def with_options(
    names: Sequence[str],
    partition: Partition,
    ranges: Sequence[ShapeRange],
    precision: str,
    cache: Path,
    stream: int = 0,
) -> Providers:
    """The providers as a session takes them; the process sees one GPU, so it is device 0. They compute on `stream`."""
    options: dict[str, dict[str, str]] = {
        CUDA: {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "0",  # fp32 shall be fp32
        },
        TENSORRT: {
            "device_id": "0",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
            "trt_fp16_enable": str(precision == "fp16"),
            "trt_int8_enable": str(precision == "int8"),
            "trt_int8_use_native_calibration_table": "False",
            **_profile(ranges),
        },
    }
    if stream:
        for each in options.values():
            each["user_compute_stream"] = str(stream)
    if partition.memory_limit_bytes:
        options[CUDA]["gpu_mem_limit"] = str(partition.memory_limit_bytes)
    return [(name, options[name]) if name in options else name for name in names]


def _profile(ranges: Sequence[ShapeRange]) -> dict[str, str]:
    if not ranges:
        return {}
    edges = {"min": [each.least for each in ranges], "opt": [each.best for each in ranges]}
    edges["max"] = [each.most for each in ranges]
    return {
        f"trt_profile_{edge}_shapes": ",".join(
            f"{each.name}:{'x'.join(map(str, shape))}" for each, shape in zip(ranges, shapes, strict=True)
        )
        for edge, shapes in edges.items()
    }


def check_there(names: Sequence[str], available: Sequence[str], version: str) -> None:
    """LoadFailed where this onnxruntime lacks one of the providers: it would only warn, and use the CPU."""
    missing = [name for name in names if name not in available]
    if missing:
        raise LoadFailed(
            f"a GPU was asked for, but this onnxruntime {version} has no {missing[0]}, only {', '.join(available)}: "
            "pip install onnxruntime-gpu in place of onnxruntime, or give the model to the CPU"
        )


def check_taken(names: Sequence[str], taken: Sequence[str]) -> None:
    """LoadFailed where a session has left a provider out, as it does when the provider's libraries do not load."""
    missing = [name for name in names if name not in taken]
    if missing:
        raise LoadFailed(
            f"onnxruntime could not start {missing[0]} and took {', '.join(taken)} instead: its CUDA, cuDNN or "
            "TensorRT libraries are missing or of another version; `onnxruntime.preload_dlls()` tells which"
        )


def assignment(session: Any) -> list[Assigned] | None:
    """Who runs each node of a session that was made with the entry `RECORD`; None where onnxruntime cannot tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    return [
        Assigned(part.ep_name, f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
        for part in tell()
        for node in part.get_nodes()
    ]


def remark(nodes: Sequence[Assigned] | None, names: Sequence[str], version: str) -> Remark:
    """One sentence on who runs the nodes; a warning where some run on the CPU that were to run on a GPU."""
    if nodes is None:
        return Remark(f"onnxruntime {version} does not tell which provider runs each node; 1.24 and later do")
    counts = Counter(node.provider for node in nodes)
    fallen = _fallen(nodes, names)
    parts = [
        f"{provider} runs {count} of {len(nodes)} nodes"
        + (f" ({_listed(node.operator for node in fallen)})" if provider == CPU and fallen else "")
        for provider, count in counts.most_common()
    ]
    text = "; ".join(parts) or f"onnxruntime {version} tells of no node which provider runs it"
    return Remark(text, is_warning=bool(fallen))


def refuse_cpu(nodes: Sequence[Assigned] | None, names: Sequence[str]) -> None:
    """LoadFailed where nodes run on the CPU that were to run on a GPU, with their operators."""
    fallen = _fallen(nodes or (), names)
    if fallen:
        raise LoadFailed(
            f"{len(fallen)} of {len(nodes or ())} nodes would run on the CPU, which --strict-provider refuses: "
            f"{_listed(node.operator for node in fallen)}; serve without it, or export the model without them"
        )


def _fallen(nodes: Iterable[Assigned], names: Sequence[str]) -> list[Assigned]:
    return [node for node in nodes if node.provider == CPU] if names[0] != CPU else []


def _listed(operators: Iterable[str]) -> str:
    counts = Counter(operators).most_common()
    shown = [f"{operator} {count}" for operator, count in counts[:_SHOWN_OPERATORS]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} other operators" if more > 0 else "")
