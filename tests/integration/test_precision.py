"""A model in int8 and in bf16 from `efserve convert` to an answer by NVIDIA's client, as users go."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tritonclient import http as triton

import onnx_models
from live_server import serve


def test_int8_and_bf16_beside_fp32_on_one_server(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (tmp_path / "net.onnx").write_bytes(onnx_models.cnn())
    images = np.random.default_rng(3).standard_normal((64, 1, 28, 28)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", input=images)
    bounds = {}
    for words in ((), ("--precision", "int8"), ("--precision", "bf16")):
        given = ("--calibration", "samples.npz") if words else ()
        done = subprocess.run(
            [sys.executable, "-m", "efserve", "convert", "net.onnx", *words, *given, "--json", "--output", repository],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=100,
        )
        told = json.loads(done.stdout)
        bounds[told["name"]] = told["losses"][0] if told["losses"] else None
    assert list(bounds) == ["net", "net_int8", "net_bf16"]
    answers = {}
    with serve(repository=repository) as server, triton.InferenceServerClient(server.address) as client:
        for name in bounds:
            tensor = triton.InferInput("input", [8, 1, 28, 28], "FP32")
            tensor.set_data_from_numpy(images[::4][:8])
            answers[name] = client.infer(name, [tensor]).as_numpy("output")
            assert client.get_model_config(name)["backend"] == {"net_bf16": "openvino"}.get(name, "onnxruntime")
    for name, loss in bounds.items():
        if loss is not None:
            gap = float(np.abs(answers[name] - answers["net"]).max())
            assert 0 < gap <= loss["max_abs"] * 1.01
    assert (repository / "net" / "1" / ".cache").is_dir()  # the server maps what convert has made


def test_check_shows_the_loss(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(onnx_models.cnn())
    efserve = [sys.executable, "-m", "efserve"]
    options = ["--precision", "int8", "--output", "models"]
    subprocess.run(
        [*efserve, "convert", "net.onnx", *options], cwd=tmp_path, capture_output=True, check=True, timeout=100
    )
    done = subprocess.run(
        [*efserve, "check", "--model-repository", "models", "--json"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=100,
    )
    (checked,) = json.loads(done.stdout)
    assert any(remark.startswith("converted to int8") for remark in checked["remarks"])
    assert any("64 samples of random images" in remark for remark in checked["remarks"])
