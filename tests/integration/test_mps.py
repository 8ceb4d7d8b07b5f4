"""`efserve mps` and `efserve serve --mps` as processes, with stand-ins for NVIDIA's programs and libraries.

The whole way runs: daemons, workers that become clients, faults, restarts. What NVIDIA's own do, it does not tell.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from efserve.pairs import read_pairs
from efserve.profiles import read_profile
from live_server import MODELS, serve
from mps_machine import Machine, machine_in

RUN_DIR = f"efserve-mps-{os.getuid()}"
ONE = np.ones((1, 4), np.float32)
LATE = """
import threading
from pathlib import Path

class Model:
    def __init__(self, config, folder):
        again = Path({again!r})
        if not again.exists():  # the first time it never comes to an end
            again.touch()
            Path({begun!r}).open("w").close()
            threading.Event().wait()

    def infer(self, inputs):
        return {{"output": inputs["input"]}}
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Two GPUs; in a folder with a short name, for the sockets of daemons."""
    with tempfile.TemporaryDirectory() as folder, machine_in(Path(folder)) as machine:
        yield Machine(machine.folder, machine.folder / RUN_DIR)


def mps(machine: Machine, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path or f"{machine.bin}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(machine.folder)}
    return subprocess.run(
        [sys.executable, "-m", "efserve", "mps", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# efserve mps


@as_root
def test_start_status_stop(machine: Machine) -> None:
    done = mps(machine, "start")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"GPU-a: MPS started.\n  export CUDA_MPS_PIPE_DIRECTORY={machine.pipes('GPU-a')}\n"
        f"GPU-b: MPS started.\n  export CUDA_MPS_PIPE_DIRECTORY={machine.pipes('GPU-b')}\n"
    )
    assert mps(machine, "start").stdout.count("MPS is running already") == 2
    server = machine.start_server("GPU-a")
    machine.add_client("GPU-a", os.getpid())
    done = mps(machine, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"GPU-a: MPS is running, compute mode EXCLUSIVE_PROCESS, servers: {server} (ACTIVE, 1 client)\n"
        "GPU-b: MPS is running, compute mode EXCLUSIVE_PROCESS, servers: none yet\n"
    )
    a, b = json.loads(mps(machine, "status", "--json").stdout)
    assert (a["uuid"], a["state"], a["servers"][0]["clients"]) == ("GPU-a", "running", [os.getpid()])
    assert a["listed"] == [{"pid": os.getpid(), "server_pid": server, "device": "GPU-a", "command": "python"}]
    assert (b["index"], b["kept_mode"], b["servers"]) == (1, "PROHIBITED", [])
    assert mps(machine, "stop", "--gpu", "1").stdout == "GPU-b: MPS stopped.\n"
    done = mps(machine, "status")
    assert done.returncode == 3
    assert "GPU-b: MPS is not running, compute mode PROHIBITED\n" in done.stdout
    assert mps(machine, "stop").stdout == "GPU-a: MPS stopped.\n"
    assert mps(machine, "stop").stdout == f"MPS is not running in {machine.run_dir}.\n"
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


def test_a_daemon_that_hangs_is_exit_code_1(machine: Machine) -> None:
    mps(machine, "start", "--gpu", "GPU-a")
    machine.set("hang")
    done = mps(machine, "status", "--gpu", "0", "--deadline-s", "0.5")
    assert (done.returncode, done.stdout) == (1, "GPU-a: the MPS daemon does not answer within 0.5 s\n")
    done = mps(machine, "start", "--gpu", "0", "--deadline-s", "0.5")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the MPS daemon of GPU-a does not answer within 0.5 s; end it with: efserve")
    done = mps(machine, "stop", "--deadline-s", "0.5")
    assert (done.returncode, done.stdout) == (0, "GPU-a: MPS stopped.\n")
    assert "does not quit; it gets SIGTERM" in done.stderr


def test_one_daemon_is_stopped_for_all(machine: Machine) -> None:
    assert mps(machine, "start", "--single").stdout.startswith("all: MPS started.")
    done = mps(machine, "stop", "--gpu", "0")
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["Error: one daemon serves all GPUs here and can only be stopped for all; leave --gpu away"],
    )
    assert mps(machine, "stop").stdout == "all: MPS stopped.\n"


def test_wrong_gpus_and_directories_are_told(machine: Machine) -> None:
    done = mps(machine, "start", "--gpu", "7")
    assert (done.returncode, done.stderr) == (
        2,
        "Error: there is no GPU '7'; this machine has 0 (GPU-a), 1 (GPU-b)\n",
    )
    done = mps(machine, "start", "--run-dir", "/proc/no")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot make the run directory /proc/no: ")


@pytest.mark.parametrize("action", ["start", "status"])
def test_without_nvidias_programs_one_sentence(machine: Machine, action: str) -> None:
    done = mps(machine, action, path="/nowhere")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no nvidia-smi on this machine: MPS needs an NVIDIA GPU and its driver; efserve runs on the CPU "
        "without it\n"
    )
    assert mps(machine, "stop", path="/nowhere").returncode == 0


@as_root
def test_ctrl_c_undoes_a_start(machine: Machine) -> None:
    machine.set("hang-d")
    environment = {"PATH": f"{machine.bin}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(machine.folder)}
    command = [sys.executable, "-m", "efserve", "mps", "start"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE) as process:
        while not machine.daemons():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


# efserve serve --mps


@dataclass(frozen=True)
class SharedGpu:
    """What `efserve serve` needs to find the two GPUs, and models that run on the CPU but are told to share one."""

    machine: Machine
    environment: dict[str, str]

    def options(self, *models: str, device: str = "gpu0") -> list[str]:
        chosen = [part for model in models for part in ("--model", model, "--share", f"{model}=40,{device}")]
        return [*chosen, "--mps", "on"]


@pytest.fixture(scope="module")
def libraries() -> Iterator[Path]:
    """A folder with stand-ins for the driver's libraries."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = Path(__file__).parents[1] / "stand_in_gpu.c"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
            command = [compiler, "-shared", "-fPIC", "-w", "-o", f"{folder}/{name}", str(source)]
            subprocess.run(command, check=True, timeout=60)
        yield Path(folder)


@pytest.fixture
def shared(machine: Machine, libraries: Path) -> SharedGpu:
    """The machine as `efserve serve` sees it."""
    return SharedGpu(
        machine,
        {
            "PATH": f"{machine.bin}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(machine.folder),
            "LD_LIBRARY_PATH": str(libraries),
        },
    )


@as_root
def test_workers_are_clients_of_daemons_that_end_with_the_server(shared: SharedGpu) -> None:
    machine = shared.machine
    with serve(*shared.options("slow"), repository=MODELS, environment=shared.environment) as server:
        assert server.state_of("slow") == ("READY", "")
        (placement,) = server.status["models"][0]["placements"]
        assert placement["means"] == "mps"
        assert machine.ask("GPU-a", "get_client_list 1").split() == [str(server.worker_pids[0])]
        assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Exclusive_Process", "Prohibited")
        assert server.infer("slow", ONE)[0] == 200
        assert server.stop(signal.SIGINT) == 0
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


def test_a_fault_restarts_the_workers_of_that_gpu_and_no_other(shared: SharedGpu) -> None:
    machine = shared.machine
    options = [*shared.options("slow", "chatty"), *shared.options("raises_in_infer", device="gpu1")]
    with serve(*options, repository=MODELS, environment=shared.environment) as server:
        before = {model["name"]: model["placements"][0]["pid"] for model in server.status["models"]}
        machine.make_faulty("GPU-a")
        ended = [os.pidfd_open(before[name]) for name in ("slow", "chatty")]
        for descriptor in ended:
            assert select.select([descriptor], [], [], 60)[0]
            os.close(descriptor)
        for name in ("slow", "chatty"):  # the router holds the requests until the next worker is ready
            assert server.infer(name, ONE)[0] == 200
        assert before["raises_in_infer"] in server.worker_pids
        assert len(server.worker_pids) == 3
        assert server.stop() == 0
    printed = "".join(server.printed)
    assert "MPS of GPU-a has failed (its server is in state FAULT); its 2 workers start again" in printed
    assert printed.count("has failed") == 1
    assert sum(call.startswith("daemon") for call in machine.calls()) == 2
    assert machine.daemons() == []


def test_a_model_that_loads_when_another_has_a_fault_is_loaded_again(shared: SharedGpu, tmp_path: Path) -> None:
    machine = shared.machine
    begun, again = tmp_path / "begun", tmp_path / "again"
    os.mkfifo(begun)
    shutil.copytree(MODELS / "slow", tmp_path / "models" / "slow")
    shutil.copytree(MODELS / "chatty", tmp_path / "models" / "late")
    (tmp_path / "models" / "late" / "1" / "model.py").write_text(LATE.format(begun=str(begun), again=str(again)))
    shares = ["--share", "slow=40,gpu0", "--share", "late=40,gpu0", "--mps", "on"]
    options = ["--model-control-mode", "explicit", "--load-model", "slow", *shares]
    with (
        serve(*options, repository=tmp_path / "models", environment=shared.environment) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        loading = pool.submit(server.post, "/v2/repository/models/late/load", {})
        begun.open().close()
        machine.make_faulty("GPU-a")
        assert loading.result(60)[0] == 200
        assert again.exists()
        assert server.infer("slow", ONE)[0] == 200
        assert server.stop() == 0


@as_root
def test_what_a_killed_server_leaves_the_next_one_ends(shared: SharedGpu) -> None:
    machine = shared.machine
    for _ in range(2):
        with serve(*shared.options("slow"), repository=MODELS, environment=shared.environment) as server:
            server.process.kill()
            server.process.wait(30)
        assert len(machine.daemons()) == 2  # the daemon and its server
        assert machine.mode("GPU-a") == "Exclusive_Process"
    assert sum(call.startswith("daemon") for call in machine.calls()) == 1
    with serve(*shared.options("slow"), repository=MODELS, environment=shared.environment) as server:
        assert server.stop() == 0
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


@as_root
def test_what_a_killed_server_leaves_can_be_stopped_by_hand(shared: SharedGpu) -> None:
    machine = shared.machine
    with serve(*shared.options("slow"), repository=MODELS, environment=shared.environment) as server:
        server.process.kill()
    assert mps(machine, "stop").stdout == "GPU-a: MPS stopped.\n"
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


def test_a_daemon_that_a_person_started_stays(shared: SharedGpu) -> None:
    machine = shared.machine
    mps(machine, "start", "--gpu", "0")
    with serve(*shared.options("slow"), repository=MODELS, environment=shared.environment) as server:
        assert server.status["models"][0]["placements"][0]["means"] == "mps"
        assert server.stop() == 0
    assert len(machine.daemons()) == 2
    assert mps(machine, "stop").returncode == 0


def test_a_client_is_terminated_before_its_worker_is_killed(shared: SharedGpu, tmp_path: Path) -> None:
    machine = shared.machine
    started = tmp_path / "started"
    os.mkfifo(started)
    shutil.copytree(MODELS / "hangs_in_infer", tmp_path / "models" / "hangs_in_infer")
    with (tmp_path / "models" / "hangs_in_infer" / "config.pbtxt").open("a") as config:
        config.write(f'parameters {{ key: "started" value {{ string_value: "{started}" }} }}\n')
    options = [*shared.options("hangs_in_infer"), "--drain-s", "0.1"]
    with (
        serve(*options, repository=tmp_path / "models", environment=shared.environment) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        pid = server.worker_pids[0]
        waiting = pool.submit(server.infer, "hangs_in_infer", ONE)
        started.open().close()
        assert server.stop() == 0
        assert waiting.exception() or waiting.result()[0] != 200
    assert any(call.startswith("control mps-GPU-a terminate_client") and str(pid) in call for call in machine.calls())


# How a start ends early


def end_of_serve(shared: SharedGpu, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **shared.environment}
    if path:
        environment |= {"PATH": path, "LD_LIBRARY_PATH": ""}
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--model-repository", str(MODELS)]
    return subprocess.run(
        [sys.executable, "-m", "efserve", "serve", *ports, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_on_without_a_gpu_is_one_sentence(shared: SharedGpu) -> None:
    done = end_of_serve(shared, "--mps", "on", "--model", "never_ready", path="/nowhere")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no nvidia-smi on this machine: MPS needs an NVIDIA GPU and its driver; efserve runs on the CPU "
        "without it\n"
    )


@as_root
def test_a_model_that_fails_leaves_no_daemon(shared: SharedGpu) -> None:
    machine = shared.machine
    done = end_of_serve(shared, *shared.options("raises_in_load"), "--exit-on-error")
    assert done.returncode == 1
    assert "Error: model 'raises_in_load' did not start" in done.stderr
    assert any(call.startswith("daemon GPU-a") for call in machine.calls())
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


@as_root
def test_a_daemon_that_does_not_start_ends_the_start_with_on(shared: SharedGpu) -> None:
    machine = shared.machine
    machine.set("refuse")
    done = end_of_serve(shared, *shared.options("slow"))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the MPS daemon of GPU-a did not start (no licence for this GPU); see ")
    assert machine.mode("GPU-a") == "Default"


@as_root
@pytest.mark.parametrize("trouble", ["hang-d", "never_ready"])
def test_ctrl_c_during_the_start_undoes_it(shared: SharedGpu, trouble: str) -> None:
    """While a daemon is being started, and while a worker is."""
    machine = shared.machine
    if trouble == "hang-d":
        machine.set(trouble)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--model-repository", str(MODELS)]
    process = subprocess.Popen(
        [sys.executable, "-m", "efserve", "serve", *ports, *shared.options("never_ready")],
        env={**os.environ, **shared.environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        awaited = "get_server_list" if trouble == "never_ready" else "daemon GPU-a"
        while not (any(awaited in call for call in machine.calls()) and machine.daemons()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert machine.daemons() == []
    assert machine.mode("GPU-a") == "Default"


# efserve profile on shares of a GPU


def profile(shared: SharedGpu, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    where = ["--model-repository", str(MODELS), "--model", "echo", "--output", str(output)]
    quick = ["--min-time", "0.05", "--min-repetitions", "5", "--batches", "1,2"]
    return subprocess.run(
        [sys.executable, "-m", "efserve", "profile", *where, *quick, *options],
        env={**os.environ, **shared.environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_profile_has_the_sms_of_each_share_and_undoes_mps(shared: SharedGpu, tmp_path: Path) -> None:
    done = profile(shared, tmp_path, "--device", "gpu0", "--shares", "25,50,100")
    assert done.returncode == 0, done.stderr
    measured = read_profile(tmp_path / "gpu-in-c" / "echo.python.csv")
    assert [(row.share_pct, row.sm_count, row.batch) for row in measured.rows] == [
        (share, sms, batch) for share, sms in ((25, 33), (50, 66), (100, 132)) for batch in (1, 2)
    ]
    assert (measured.facts.share_means, measured.facts.gpu, measured.facts.driver) == ("mps", "GPU in C", "570.86.15")
    assert "echo 1, " in done.stdout
    assert ", GPU in C" in done.stdout
    assert shared.machine.daemons() == []


def test_pairs_share_a_gpu(shared: SharedGpu, tmp_path: Path) -> None:
    done = profile(shared, tmp_path, "--device", "auto", "--pairs", "--shares", "40")
    assert done.returncode == 0, done.stderr
    told = read_pairs(tmp_path / "gpu-in-c" / "pairs.json")
    assert {(pair.my_pct, pair.your_pct) for pair in told.pairs} == {(40, 60), (60, 40)}
    assert told.facts.share_means == "mps"
    assert all(pair.cpu_slowdown is None for pair in told.pairs)
    assert shared.machine.daemons() == []
