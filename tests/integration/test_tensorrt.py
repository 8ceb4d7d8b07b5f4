"""`serve --trt` without TensorRT, as it is here; and with stand-ins for NVIDIA's libraries, whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from efserve.engines.tensorrt_machine import refusal
from live_server import SHIPPED, serve

STAND_INS = Path(__file__).parents[1] / "stand_ins"


def efserve(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "efserve", *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that finds a GPU, TensorRT and pycuda: stand-ins, all of them."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stand_ins")
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(STAND_INS / "libcuda.c")]
    subprocess.run(command, check=True, timeout=60)
    path = os.pathsep.join(filter(None, (str(STAND_INS), os.environ.get("PYTHONPATH", ""))))
    return {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models: one that TensorRT takes, and one without an ONNX file."""
    shutil.copytree(SHIPPED / "digits", tmp_path / "digits", ignore=shutil.ignore_patterns(".cache"))
    shutil.copytree(Path(__file__).parents[1] / "models" / "echo", tmp_path / "echo")
    return tmp_path


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
@pytest.mark.parametrize("option", [("--trt",), ("--engine", "tensorrt")])
def test_a_machine_without_tensorrt_is_one_sentence(repository: Path, option: tuple[str, ...]) -> None:
    ended = efserve("serve", *option, "--model-repository", repository, "--http-port", "0")
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line == (
        "Error: TensorRT cannot run here: this machine has no NVIDIA driver, and tensorrt and pycuda are not installed "
        "(pip install 'efserve[tensorrt]')"
    )


def test_what_is_missing_is_told() -> None:
    assert refusal([], "") == ""
    assert refusal(["pycuda"], "").startswith("TensorRT cannot run here: pycuda is not installed (pip")
    assert refusal([], "no GPU") == "TensorRT cannot run here: this machine has no GPU"
    assert refusal([], "the driver does not answer") == "TensorRT cannot run here: the driver does not answer"


def test_two_engines_at_once_are_refused(repository: Path) -> None:
    ended = efserve("serve", "--trt", "--engine", "onnx", "--model-repository", repository)
    assert ended.returncode == 2
    assert "--trt and --engine onnx contradict each other" in ended.stderr


def test_models_are_compiled_served_and_kept(repository: Path, gpu: dict[str, str]) -> None:
    images = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    with serve("--engine", "onnx", "--model", "digits", repository=repository) as server:
        _, expected = server.infer("digits", images)
    for start in ("built now and is kept in", "kept from an earlier start"):
        with serve("--trt", "-v", repository=repository, environment=gpu) as server:
            assert server.state_of("digits") == ("READY", "")
            assert server.state_of("echo") == ("READY", "")
            engines = {model["name"]: model["engine"] for model in server.status["models"]}
            assert engines == {"digits": "tensorrt", "echo": "python"}
            assert server.says(f"runs an fp32 plan that was {start}")
            assert server.says("runs without CUDA graphs: cuStreamBeginCapture_v2: operation not permitted")
            for _ in range(3):
                status, answer = server.infer("digits", images)
                assert status == 200
                np.testing.assert_allclose(
                    answer["outputs"][0]["data"], expected["outputs"][0]["data"], rtol=1e-4, atol=1e-6
                )
            told = "".join(server.printed)
            assert ("builds its TensorRT plan in fp32, which takes minutes" in told) == (start.startswith("built"))
    (plan,) = (repository / "digits" / "1" / ".cache").glob("model.*.plan")
    facts = json.loads(plan.with_suffix(".json").read_text())
    assert facts["machine"] == {"gpu": "Stand-in GPU", "compute_capability": "9.0", "tensorrt": "11.1.0.106"}
    assert facts["ranges"][0]["most"] == [32, 1, 8, 8]


@pytest.mark.parametrize("version", ["10.0.1", "11.4.1"])
def test_either_version_builds_in_either_precision(repository: Path, gpu: dict[str, str], version: str) -> None:
    config = repository / "digits" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "precision" value { string_value: "fp16" } }\n')
    ended = efserve("check", "--engine", "tensorrt", "--json", "--model-repository", repository, "digits",
                    **gpu, STAND_IN_TENSORRT=version)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (found,) = json.loads(ended.stdout)
    assert found["remarks"][0].startswith("runs an fp16 plan that was built now and is kept in ")


def test_another_version_builds_anew(repository: Path, gpu: dict[str, str]) -> None:
    for version in ("10.0.1", "10.1.0", "10.0.1"):
        ended = efserve("check", "--engine", "tensorrt", "--model-repository", repository, "digits",
                        **gpu, STAND_IN_TENSORRT=version)  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert "kept from an earlier start" in ended.stdout
    assert len([*(repository / "digits" / "1" / ".cache").glob("model.*.plan")]) == 2


def test_two_instances_build_one_plan(repository: Path, gpu: dict[str, str]) -> None:
    with serve(
        "--trt", "-v", "--model", "digits", "--instances", "2", repository=repository, environment=gpu
    ) as server:
        assert server.state_of("digits") == ("READY", "")
        told = "".join(server.printed)
    assert told.count("builds its TensorRT plan in fp32") == 1
    assert told.count("built now and is kept") == 1
    assert "another worker has just built" in told or "kept from an earlier start" in told


def test_a_build_that_goes_on_may_take_longer_than_the_deadline(repository: Path, gpu: dict[str, str]) -> None:
    words = ("--trt", "--model", "digits", "--load-timeout-s", "6")
    with serve(*words, repository=repository, environment={**gpu, "STAND_IN_STEP_S": "0.8"}) as server:
        assert server.state_of("digits") == ("READY", "")
        told = "".join(server.printed)
    assert "model=digits/1 builds its TensorRT plan: Tactic Selection, step " in told


def test_a_build_that_tells_nothing_new_is_given_up(repository: Path, gpu: dict[str, str]) -> None:
    words = ("--trt", "--model", "digits", "--load-timeout-s", "6")
    with serve(*words, repository=repository, environment={**gpu, "STAND_IN_STEP_S": "600"}) as server:
        state, reason = server.state_of("digits")
    assert state == "UNAVAILABLE"
    assert reason.startswith("it told nothing new within 6 s; the last: builds its TensorRT plan in fp32, which takes")


def test_plans_that_are_not_to_be_kept(repository: Path, gpu: dict[str, str]) -> None:
    ended = efserve("check", "--engine", "tensorrt", "--json", "--model-repository", repository, "digits",
                    **gpu, EFSERVE_CACHE="off")  # fmt: skip
    (found,) = json.loads(ended.stdout)
    assert found["remarks"][0] == "runs an fp32 plan that was built now and is not kept: EFSERVE_CACHE is off"
    assert not (repository / "digits" / "1" / ".cache").exists()


def test_an_operator_that_does_not_parse_is_that_models_error(repository: Path, gpu: dict[str, str]) -> None:
    onnx_models.save(repository, "adds", onnx_models.add_sub())
    with serve("--trt", repository=repository, environment={**gpu, "STAND_IN_UNSUPPORTED": "Sub"}) as server:
        assert server.state_of("digits") == ("READY", "")
        state, reason = server.state_of("adds")
    assert state == "UNAVAILABLE"
    assert reason.startswith("TensorRT cannot parse model.onnx: operator Sub")
    assert "Serve it with --engine onnx" in reason


def test_int8_needs_a_quantised_model(repository: Path, gpu: dict[str, str]) -> None:
    config = repository / "digits" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "precision" value { string_value: "int8" } }\n')
    ended = efserve("check", "--engine", "tensorrt", "--json", "--model-repository", repository, "digits", **gpu)
    assert ended.returncode == 1
    (found,) = json.loads(ended.stdout)
    assert found["error"].startswith("precision int8 needs a quantised model.onnx, with QuantizeLinear")


def test_a_plan_is_loaded_only_where_it_is_named(repository: Path, gpu: dict[str, str]) -> None:
    version = repository / "digits" / "1"
    assert efserve("check", "--engine", "tensorrt", "--model-repository", repository, "digits", **gpu).returncode == 0
    (plan,) = (version / ".cache").glob("model.*.plan")
    plan.rename(version / "model.plan")
    shutil.rmtree(version / ".cache")
    (version / "model.onnx").rename(version / "kept.onnx")
    words = ("check", "--json", "--model-repository", repository, "digits")
    (unnamed,) = json.loads(efserve(*words, "--engine", "tensorrt", **gpu).stdout)
    assert "has no model.onnx for engine tensorrt" in unnamed["error"]
    config = repository / "digits" / "config.pbtxt"
    config.write_text(config.read_text() + 'platform: "tensorrt_plan"\n')
    (named,) = json.loads(efserve(*words, **gpu).stdout)
    assert named["error"] == ""
    assert named["remarks"][0] == "runs the plan model.plan, which its config names"
    (other,) = json.loads(efserve(*words, **gpu, STAND_IN_TENSORRT="10.9.0").stdout)
    assert other["error"] == (
        "TensorRT cannot load model.plan: the engine plan file is not compatible with this version of TensorRT, "
        "expecting 10.9.0 got 11.1.0.106. A plan runs only on the kind of GPU and with the version of TensorRT that "
        "built it; this is Stand-in GPU (compute capability 9.0) with TensorRT 10.9.0. Build one here from the ONNX "
        "file: efserve serve --trt"
    )


def test_what_the_config_says_otherwise_is_told_before_the_build(tmp_path: Path, gpu: dict[str, str]) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity(4))
    (folder.parent / "config.pbtxt").write_text(
        'max_batch_size: 4\ninput { name: "input" data_type: TYPE_FP32 dims: [5] }\n'
        'output { name: "output" data_type: TYPE_FP32 dims: [5] }\n'
    )
    ended = efserve("check", "--engine", "tensorrt", "--json", "--model-repository", tmp_path, **gpu)
    (found,) = json.loads(ended.stdout)
    assert "complete shape [-1,5]" in found["error"]
    assert "builds" not in ended.stderr


def test_a_folder_that_cannot_be_written_leaves_the_plan_in_the_users_cache(
    repository: Path, gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    words = ("check", "--engine", "tensorrt", "--model-repository", repository, "digits")
    for said in ("built now and is kept", "kept from an earlier start"):
        ended = efserve(*words, **gpu, EFSERVE_CACHE=str(cache))
        assert said in " ".join(ended.stdout.split())
    assert not (repository / "digits" / "1" / ".cache").exists()
    assert [*cache.glob("*/model.*.plan")]


def test_a_model_of_any_length_needs_its_range(tmp_path: Path, gpu: dict[str, str]) -> None:
    onnx_models.save(tmp_path, "free", onnx_models.dynamic())
    ended = efserve("check", "--engine", "tensorrt", "--json", "--model-repository", tmp_path, **gpu)
    (found,) = json.loads(ended.stdout)
    assert "has free dimensions [-1], whose range TensorRT must know; add parameters" in found["error"]


def test_converting_without_tensorrt_is_one_sentence(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine may have a GPU")
    target = tmp_path_factory.mktemp("target")
    source = repository / "digits" / "1" / "model.onnx"
    ended = efserve("convert", source, "--format", "tensorrt", "--name", "d", "--model-repository", target)
    assert ended.returncode == 1
    assert "TensorRT cannot run here: this machine has no NVIDIA driver, and tensorrt and pycuda" in ended.stderr
    assert not [*target.iterdir()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_converted_model_brings_its_plan(
    repository: Path, gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory, precision: str
) -> None:
    target = tmp_path_factory.mktemp("target")
    source = repository / "digits" / "1" / "model.onnx"
    words = ("--format", "tensorrt", "--name", "d", "--model-repository", target, "--precision", precision)
    ended = efserve("convert", source, *words, **gpu)
    if precision == "bf16":  # which the stand-in, onnxruntime on a processor, cannot run
        assert ended.returncode == 1
        assert "model.onnx was written, but it cannot be run" in ended.stderr
        assert not [*target.iterdir()]
        return
    assert ended.returncode == 0, ended.stderr
    assert "builds its TensorRT plan in fp32, which takes minutes" in ended.stderr
    assert 'backend: "tensorrt"' in (target / "d" / "config.pbtxt").read_text()
    checked = efserve("check", "--model-repository", target, **gpu)
    assert "runs an fp32 plan that was kept from an earlier start" in " ".join(checked.stdout.split())


def test_an_interrupted_build_leaves_nothing(
    repository: Path, gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("target")
    words = ["convert", str(repository / "digits" / "1" / "model.onnx"), "--format", "tensorrt", "--name", "d"]
    process = subprocess.Popen(
        [sys.executable, "-m", "efserve", *words, "--model-repository", str(target)],
        env=os.environ | gpu | {"STAND_IN_STEP_S": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Tactic Selection" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=12) == 130
    process.stderr.close()
    assert not [*target.iterdir()]
