"""The serving path itself: gateway and a worker on the device, measured by efserve's own load generator over HTTP."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from gpu_proof_parts import models
from gpu_proof_parts.networks import image_config, scripted
from gpu_proof_parts.rows import Row, Scale

_NEEDED = (
    "click", "google.protobuf", "grpc", "hpack", "httptools", "msgspec", "onnxruntime", "PIL", "prometheus_client",
    "psutil", "pynvml", "rich", "starlette", "tritonclient", "uvicorn", "uvloop",
)  # fmt: skip
_DEADLINE_S = 85.0


def serving(scale: Scale) -> Iterator[Row]:
    """resnet50 with single images, at each concurrency."""
    missing = [name for name in _NEEDED if not _is_there(name)]
    if missing:
        note = f"not installed: {', '.join(missing)}; bring their wheels along on PYTHONPATH"
        yield Row("serving", "left out", note=note, failed=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder) / "models" / "resnet50", scale)
        result = Path(folder) / "bench.json"
        levels = "1,2" if scale.cpu else "1,2,4,8,16,32,64"
        command = [sys.executable, "-m", "efserve", "bench", "--model-repository", f"{folder}/models"]
        command += ["--concurrency", levels, "--duration", "0.5" if scale.cpu else "4", "--json", str(result)]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", ""))))
        ended = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        if not result.exists():
            raise RuntimeError(" ".join((ended.stderr.strip() or ended.stdout.strip())[-300:].split()))
        for level in json.loads(result.read_text())["levels"]:
            found = level["statistics"]
            latency, server = found["latency"], found["server"] or {}
            note = f"p50 {latency['p50_us'] / 1e3:.2f} ms, p99 {latency['p99_us'] / 1e3:.2f} ms"
            if server:
                note += f", engine {server['compute_infer_us'] / 1e3:.2f} ms, mean batch {server['mean_batch']:.1f}"
            errors = sum(found["errors"].values())
            name = f"concurrency {level['record']['load']['label']}"
            yield Row("serving", name, found["inferences_per_s"], "images/s", f"{note}, {errors} errors")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _write_model(folder: Path, scale: Scale) -> None:
    config = image_config(scale)
    (folder / "1").mkdir(parents=True)
    torch.jit.save(scripted(models.resnet50(scale.cpu)), str(folder / "1" / "model.pt"))
    dims = ", ".join(map(str, config.inputs[0].dims))
    kind, precision = "KIND_CPU", ""
    if not scale.cpu:
        kind, precision = "KIND_GPU", 'parameters { key: "precision" value { string_value: "fp16" } }'
    (folder / "config.pbtxt").write_text(
        f'platform: "pytorch_libtorch"\nmax_batch_size: {64 if not scale.cpu else 4}\n{precision}\n'
        f'input {{ name: "image" data_type: TYPE_FP32 dims: [{dims}] }}\n'
        'output { name: "scores" data_type: TYPE_FP32 dims: [1000] }\n'
        f"dynamic_batching {{}}\ninstance_group {{ kind: {kind} count: 1 }}\n"
    )
