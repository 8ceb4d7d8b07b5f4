"""`efserve serve` as a process: starts, answers, survives, stops, and leaves nothing behind."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from live_server import MODELS, SHIPPED, RunningServer, serve

ONE = np.ones((1, 4), np.float32)
CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "input" data_type: TYPE_FP32 dims: 4 }
output { name: "output" data_type: TYPE_FP32 dims: 4 }
"""

MODEL_PY = """
import os, signal, sys

class Model:
    def __init__(self, config, folder):
        pass

    def infer(self, inputs):
        {body}
        return {{"output": inputs["input"]}}
"""


def make_model(repository: Path, name: str, body: str, config: str = CONFIG) -> None:
    """A Python model that echoes its input after `body`, the statements of its `infer`."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (folder / "model.py").write_text(MODEL_PY.format(body=body))


class Gate:
    """A model that says when it runs a batch and waits until it may go on: no test has to sleep."""

    def __init__(self, repository: Path, config: str = CONFIG) -> None:
        self.started, self.go = repository / "started", repository / "go"
        os.mkfifo(self.started)
        os.mkfifo(self.go)
        body = f"open({str(self.started)!r}, 'w').close(); open({str(self.go)!r}).close()"
        make_model(repository, "gate", body, config)

    def wait_until_running(self) -> None:
        """Returns when the model has a batch."""
        self.started.open().close()

    def open(self) -> None:
        """Lets the batch end."""
        self.go.open("w").close()


def wait_for_end(pid: int, deadline_s: float = 20.0) -> bool:
    """True when the process, which need not be our child, has ended in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], deadline_s)[0])
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def digits() -> Iterator[RunningServer]:
    with serve("--model", "digits", "--instances", "2", "--threads", "1", repository=SHIPPED) as server:
        yield server


def digit(rows: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(rows).random((rows, 1, 8, 8), np.float32)


def test_the_start_prints_a_table_and_the_address(digits: RunningServer) -> None:
    printed = "".join(digits.printed)
    assert "digits" in printed
    assert "READY" in printed
    assert digits.url in printed


def test_answers_have_a_row_for_each_row(digits: RunningServer) -> None:
    status, answer = digits.infer("digits", digit(3))
    assert status == 200
    assert answer["outputs"][0]["shape"] == [3, 10]
    assert np.reshape(answer["outputs"][0]["data"], (3, 10)).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_batches_never_mix_up_rows(digits: RunningServer) -> None:
    images = [digit(rows) for rows in (1, 2, 3)]
    alone = [digits.infer("digits", image)[1]["outputs"][0]["data"] for image in images]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda n: digits.infer("digits", images[n % 3]), range(120)))
    assert {status for status, _ in together} == {200}
    for n, (_, answer) in enumerate(together):
        assert answer["outputs"][0]["data"] == pytest.approx(alone[n % 3], abs=1e-5)


def test_health_metadata_config_statistics_and_index(digits: RunningServer) -> None:
    assert digits.get("/v2/health/live")[0] == digits.get("/v2/health/ready")[0] == 200
    assert digits.get("/v2/models/digits/ready")[0] == 200
    metadata = digits.get("/v2/models/digits")[1]
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert digits.get("/v2/models/digits/config")[1]["instance_group"][0]["count"] == 2
    statistics = digits.get("/v2/models/digits/stats")[1]["model_stats"][0]
    spent = statistics["inference_stats"]
    assert spent["success"]["count"] == spent["queue"]["count"] > 0
    assert statistics["inference_count"] >= statistics["execution_count"]
    assert digits.index()["digits"]["state"] == "READY"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v2/models/nope/infer", {"inputs": []}, 404, "Request for unknown model: 'nope' is not found"),
        ("/v2/models/digits/versions/9/infer", {"inputs": []}, 404, "'digits' version 9 is not found"),
        ("/v2/models/digits/infer", {"inputs": []}, 400, "expected 1 inputs but got 0 inputs for model 'digits'"),
        (
            "/v2/models/digits/infer",
            {"inputs": [{"name": "input", "shape": [1, 1, 8, 7], "datatype": "FP32", "data": [0] * 56}]},
            400,
            "unexpected shape for input 'input' for model 'digits'. Expected [-1,1,8,8], got [1,1,8,7]",
        ),
        (
            "/v2/models/digits/infer",
            {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "INT32", "data": [0] * 64}]},
            400,
            "inference input 'input' data-type is 'INT32', but model 'digits' expects 'FP32'",
        ),
        (
            "/v2/models/digits/infer",
            {"inputs": [{"name": "input", "shape": [500, 1, 8, 8], "datatype": "FP32", "data": [0] * 32000}]},
            400,
            "inference request batch-size must be <= ",
        ),
    ],
)
def test_bad_requests_get_triton_s_words(
    digits: RunningServer, path: str, body: object, status: int, says: str
) -> None:
    assert (code := digits.post(path, body))[0] == status
    assert says in code[1]["error"]
    assert digits.infer("digits", digit())[0] == 200


def test_a_killed_worker_costs_no_answer(digits: RunningServer) -> None:
    before = digits.worker_pids
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(digits.infer, "digits", digit()) for _ in range(100)]
        os.kill(before[0], signal.SIGKILL)
        answers += [pool.submit(digits.infer, "digits", digit()) for _ in range(100)]
        assert {answer.result()[0] for answer in answers} == {200}
    assert wait_for_end(before[0])


def test_a_request_that_kills_its_worker_takes_no_other_along(tmp_path: Path) -> None:
    kill = "if inputs['input'].max() > 9: print('poison!', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    make_model(tmp_path, "touchy", kill, CONFIG + "dynamic_batching { max_queue_delay_microseconds: 20000 }")
    make_model(tmp_path, "calm", "pass")
    with serve(repository=tmp_path) as server, ThreadPoolExecutor(4) as pool:
        poison = pool.submit(server.infer, "touchy", ONE * 10)
        others = [pool.submit(server.infer, "touchy", ONE) for _ in range(3)]
        assert poison.result()[0] == 503
        assert "died twice" in poison.result()[1]["error"]
        assert [other.result()[0] for other in others] == [200] * 3
        codes = [server.infer("touchy", ONE * 10)[0] for _ in range(3)]
        assert set(codes) <= {503, 404}
        entry = server.index()["touchy"]
        assert entry["state"] == "UNAVAILABLE"
        assert "5 times within a minute" in entry["reason"]
        assert "SIGKILL" in entry["reason"]
        assert "poison!" in entry["reason"]
        assert server.infer("calm", ONE)[0] == 200


def test_a_model_that_cannot_load_does_not_stop_the_others() -> None:
    names = ("raises_in_load", "exits_in_load", "never_ready", "echo")
    options = [option for name in names for option in ("--model", name)]
    with serve(*options, "--load-timeout-s", "3", repository=MODELS) as server:
        assert server.state_of("echo")[0] == "READY"
        for name in names[:3]:
            state, reason = server.state_of(name)
            assert state == "UNAVAILABLE"
            assert reason
            assert server.index()[name]["reason"] == reason
        assert "Traceback" in server.state_of("raises_in_load")[1]  # for whoever wrote the model
        table = "".join(server.printed).partition("threads")[2]
        assert "raises_in_load: RuntimeError: the weights are rotten\n" in table
        assert "Traceback" not in table
        assert server.get("/v2/health/live")[0] == 200
        assert server.get("/v2/health/ready")[0] == 400
        assert server.get("/v2/models/raises_in_load/ready")[0] != 200
        assert server.stop() == 0


def test_exit_on_error() -> None:
    command = [sys.executable, "-m", "efserve", "serve", "--model-repository", str(MODELS), "--model", "raises_in_load"]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--exit-on-error"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "model 'raises_in_load' did not start" in ended.stderr
    assert "Traceback" not in ended.stderr.split("Error:")[-1]


def test_what_the_model_raises_is_the_answer() -> None:
    with serve("--model", "raises_in_infer", "--model", "wrong_shape", repository=MODELS) as server:
        for name in ("raises_in_infer", "wrong_shape"):
            metadata = server.get(f"/v2/models/{name}")[1]
            shape = [1 if dim == -1 else dim for dim in metadata["inputs"][0]["shape"]]
            pids = server.worker_pids
            status, answer = server.infer(name, np.ones(shape, np.float32), metadata["inputs"][0]["name"])
            assert status == 500
            assert answer["error"]
            assert server.worker_pids == pids


def test_a_stop_finishes_what_is_in_flight(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serve(repository=tmp_path) as server, ThreadPoolExecutor(1) as pool:
        workers = server.worker_pids
        answer = pool.submit(server.infer, "gate", ONE)
        gate.wait_until_running()
        server.process.send_signal(signal.SIGTERM)
        gate.open()
        assert answer.result()[0] == 200
        assert server.process.wait(timeout=20) == 0
        assert all(wait_for_end(pid) for pid in workers)


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with serve(repository=tmp_path) as server:
        workers = server.worker_pids
        client = threading.Thread(target=ignore_errors, args=(server,))
        client.start()
        gate.wait_until_running()
        server.process.send_signal(signal.SIGINT)
        wait_until_refused(server.address)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=10)
        assert all(wait_for_end(pid) for pid in workers)
        client.join(timeout=10)
        assert not client.is_alive()


def test_nothing_outlives_a_killed_gateway(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    make_model(tmp_path, "idle", "pass")
    with serve(repository=tmp_path) as server:
        client = threading.Thread(target=ignore_errors, args=(server,))
        client.start()
        gate.wait_until_running()
        workers = server.worker_pids
        assert len(workers) == 2
        server.process.kill()
        assert all(wait_for_end(pid) for pid in workers)
        client.join(timeout=10)


def test_a_full_queue_answers_at_once(tmp_path: Path) -> None:
    policy = "dynamic_batching { preferred_batch_size: 1 default_queue_policy { max_queue_size: 1 } }"
    gate = Gate(tmp_path, CONFIG.replace("max_batch_size: 4", "max_batch_size: 1") + policy)
    with serve(repository=tmp_path) as server, ThreadPoolExecutor(12) as pool:
        first = pool.submit(server.infer, "gate", ONE)
        gate.wait_until_running()
        others = [pool.submit(server.infer, "gate", ONE) for _ in range(8)]
        refused = [other for other in others if done_within(other, 5)]
        assert len(refused) >= 4
        for other in refused:
            assert other.result() == (503, {"error": "Exceeds maximum queue size"})
        for _ in range(len(others) - len(refused)):
            gate.open()
            gate.wait_until_running()
        gate.open()
        assert first.result()[0] == 200


def test_grpc_is_offered_unless_it_is_not_wanted() -> None:
    with serve("--model", "digits", repository=SHIPPED) as server:
        assert any(line.split() == ["gRPC", server.grpc] for line in server.printed)
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_model_ready("digits")
            tensor = triton.InferInput("input", [1, 1, 8, 8], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
            assert client.infer("digits", [tensor]).as_numpy("scores").shape == (1, 10)
        assert server.stop() == 0
    with serve("--no-grpc", "--model", "digits", repository=SHIPPED) as server:
        assert server.grpc == ""
        assert not any("gRPC" in line for line in server.printed)


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text("of an earlier run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "efserve",
            "serve",
            "--model-repository",
            str(SHIPPED),
            "--http-port",
            str(port),
            "--ready-file",
            str(tmp_path / "ready.json"),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port with --" in ended.stderr
    assert not (tmp_path / "ready.json").exists()
    assert "--http-port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model-repository", "nowhere"), "model repository nowhere is not a folder"),
        (("--model-repository", str(SHIPPED), "--model", "nope"), "model 'nope' is not in"),
        (("--model-repository", str(SHIPPED), "--host", "no host"), "an address of this machine with --host"),
    ],
)
def test_wrong_paths_and_names_are_one_sentence(options: tuple[str, ...], says: str) -> None:
    command = [sys.executable, "-m", "efserve", "serve", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (1, 2)
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_without_models_says_so(tmp_path: Path) -> None:
    with serve(repository=tmp_path) as server:
        assert server.says("no model is served yet")


def test_a_check_that_is_interrupted_ends_like_every_command(tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    make_model(tmp_path, "waits", "pass")
    (tmp_path / "waits" / "1" / "model.py").write_text(
        "import signal\n"
        "class Model:\n"
        "    def __init__(self, config, folder):\n"
        f"        open({str(started)!r}, 'w').close()\n"
        "        signal.pause()\n"
    )
    command = [sys.executable, "-m", "efserve", "check", "--model-repository", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        started.open().close()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, said) == (130, b"", b"Interrupted.\n")


def test_a_stdin_that_cannot_tell_of_the_parent_is_refused() -> None:
    command = [sys.executable, "-m", "efserve", "serve", "--model-repository", str(SHIPPED), "--exit-with-parent"]
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    ended = subprocess.run(
        [*command, *ports], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "Error: --exit-with-parent needs a pipe as stdin, which ends with the parent\n"


def test_torchscript_serves_the_same_answers(digits: RunningServer) -> None:
    pytest.importorskip("torch")
    with serve("--model", "digits", "--engine", "torchscript", repository=SHIPPED) as server:
        mine, theirs = (s.infer("digits", digit(2))[1]["outputs"][0]["data"] for s in (server, digits))
        assert mine == pytest.approx(theirs, abs=1e-4)


def ignore_errors(server: RunningServer) -> None:
    """A client whose server goes away."""
    try:
        server.infer("gate", ONE)
    except OSError:
        return


def done_within(future: "object", seconds: float) -> bool:
    """Whether the future has a result in time."""
    from concurrent.futures import Future, wait

    assert isinstance(future, Future)
    return bool(wait([future], timeout=seconds).done)


def wait_until_refused(address: str) -> None:
    """Returns when the server no longer listens."""
    host, port = address.split(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            return
