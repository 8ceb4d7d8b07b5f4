"""`efserve bench` against MLServer, which has no /config, no /stats and no binary tensors."""

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from efserve.records import read_result

CACHE = Path(__file__).parents[2] / ".cache" / "mlserver"
PYTHON = CACHE / "bin" / "python"
INSTALL_S, START_S = 150, 60
RUNTIME = """
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput

class Echo(MLModel):
    async def predict(self, payload):
        given = payload.inputs[0]
        output = ResponseOutput(name="output", datatype=given.datatype, shape=given.shape, data=given.data)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""

pytestmark = pytest.mark.timeout(INSTALL_S + START_S + 60)


def install() -> None:
    """MLServer in an environment of its own, once; skips the test where it cannot be had."""
    if not (CACHE / "bin" / "mlserver").exists():
        venv.create(CACHE, with_pip=True)
        command = [str(PYTHON), "-m", "pip", "install", "--quiet", "mlserver"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            pytest.skip(f"MLServer cannot be installed: {done.stderr.strip()[-200:]}")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running MLServer with one model."""
    install()
    root = tmp_path_factory.mktemp("mlserver")
    http, grpc, metrics = free_ports(3)
    tensor = {"datatype": "FP32", "shape": [-1, 16]}
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "debug": False}
    model = {
        "name": "echo",
        "implementation": "echo_runtime.Echo",
        "inputs": [{"name": "input", **tensor}],
        "outputs": [{"name": "output", **tensor}],
    }
    (root / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
    (root / "echo").mkdir()
    (root / "echo" / "model-settings.json").write_text(json.dumps(model))
    (root / "echo" / "echo_runtime.py").write_text(RUNTIME)
    command = [str(CACHE / "bin" / "mlserver"), "start", "."]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        # it says so once the model is loaded; uvicorn's line about the HTTP port follows
        printed = []
        for line in process.stdout:
            printed.append(line)
            if f"Uvicorn running on http://127.0.0.1:{http}" in line:
                break
        assert process.poll() is None, "".join(printed)
        reader = threading.Thread(target=process.stdout.read)  # a full pipe would stop the server
        reader.start()
        try:
            yield f"http://127.0.0.1:{http}"
        finally:
            process.kill()
            reader.join(timeout=30)


def test_it_is_what_it_is_said_to_be(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/v2/models/echo/config", timeout=30)
    with urllib.request.urlopen(f"{url}/v2", timeout=30) as answer:
        assert json.loads(answer.read())["extensions"] == []


def test_bench_measures_it(url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "efserve", "bench", "--url", url, "--concurrency", "1,4", "--json", str(report)]
    done = subprocess.run([*command, "--duration", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_result(report)
    assert (result.target.server_name, result.target.model, result.target.binary) == ("mlserver", "echo", False)
    for level in result.levels:
        assert level.statistics.requests > 50
        assert level.statistics.errors == {}
        assert level.statistics.server is None
