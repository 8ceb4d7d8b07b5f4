"""Libraries asked in processes of their own: the installed ones, and stand-ins that hang, crash and raise."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from efserve.devices.gpu import GpuFacts
from efserve.devices.nvml import NO_DRIVER
from efserve.inspection.probes import Library, ask, ask_gpus, gpus_from, library_from
from efserve.programs import Ended

STAND_INS = {
    "onnxruntime": "import signal; signal.pause()",
    "torch": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "openvino": "raise OSError('libtbb.so.12: cannot open shared object file')",
    "tensorrt": "class Logger:\n ERROR = 1\n def __init__(self, level): pass\n"
    "def Builder(log): raise RuntimeError('CUDA initialization failure with error: 35')",
    "pycuda": "print('hello from pycuda')",
    "pycuda.driver": "class Device:\n @staticmethod\n def count(): return 1\n"
    "def init(): pass\ndef get_version(): return (12, 8, 0)",
}


def test_a_library_that_fails_is_one_line(tmp_path: Path) -> None:
    for name, code in STAND_INS.items():
        package, _, module = name.partition(".")
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / f"{module or '__init__'}.py").write_text(code)
    script = (
        "import sys, msgspec\n"
        "from efserve.inspection.probes import LIBRARIES, ask\n"
        "hangs = ask(('onnxruntime',), 1)[1]\n"
        "others = ask(tuple(name for name in LIBRARIES if name != 'onnxruntime'), 50)[1]\n"
        "sys.stdout.buffer.write(msgspec.json.encode(hangs | others))"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    found = msgspec.json.decode(done.stdout, type=dict[str, Library])
    assert found["onnxruntime"].problem == "importing it does not end within 1 s"
    assert found["torch"].problem.startswith("importing it is killed by SIGSEGV")
    assert found["openvino"].problem == "it cannot be imported: OSError: libtbb.so.12: cannot open shared object file"
    assert not found["tensorrt"].cuda_works
    assert "RuntimeError: CUDA initialization failure with error: 35" in found["tensorrt"].cuda_problem
    assert (found["pycuda"].cuda_works, found["pycuda"].cuda_version) == (True, "12.8")


def test_the_libraries_that_are_here() -> None:
    pytest.importorskip("torch")
    _, found = ask(("onnxruntime", "torch", "no_such_library"), 110)
    onnxruntime, torch = found["onnxruntime"], found["torch"]
    assert onnxruntime is not None
    assert torch is not None
    assert "CPUExecutionProvider" in onnxruntime.providers
    assert not torch.problem
    assert torch.version
    assert found["no_such_library"] is None


def test_the_gpus_are_those_of_this_process() -> None:
    from efserve.devices.gpu import gpu_facts

    asked, own = ask_gpus(110), gpu_facts()
    assert (asked.problem, [gpu.uuid for gpu in asked.gpus]) == (own.problem, [gpu.uuid for gpu in own.gpus])


def test_a_driver_that_hangs_is_a_problem() -> None:
    facts = gpus_from(Ended(problem="does not end within 30 s"))
    assert facts == GpuFacts("asking the NVIDIA driver does not end within 30 s", None, None, (), ())
    assert facts.problem != NO_DRIVER


def test_why_cuda_fails_may_be_in_what_a_library_printed() -> None:
    printed = (
        "2026-01-01 [E:onnxruntime] Failed to load library libonnxruntime_providers_cuda.so: libcudnn.so.9: cannot open"
    )
    told = msgspec.json.encode(Library("1.31.1", cuda_works=False)).decode()
    assert library_from("onnxruntime", Ended(f"noise\n{told}\n", printed)).cuda_problem == printed
