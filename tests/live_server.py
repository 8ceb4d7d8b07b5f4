"""A real `efserve serve` for integration tests: started as users start it, on ports that the system gives."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODELS = Path(__file__).parent / "models"
SHIPPED = Path(__file__).parent.parent / "model_dir"


@dataclass
class RunningServer:
    """The process, what its ready file says, and what it has printed so far."""

    process: subprocess.Popen[str]
    status: dict[str, Any]
    printed: list[str] = field(default_factory=list)
    heard: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return str(self.status["http"])

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        return str(self.status["grpc"])

    @property
    def worker_pids(self) -> list[int]:
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # of the thread that started them
        return [int(child) for children in lists for child in children.read_text().split()]

    def says(self, text: str) -> bool:
        """True when a line with this text has been printed, now or within a while."""
        with self.heard:
            return self.heard.wait_for(lambda: any(text in line for line in self.printed), 20)

    def state_of(self, model: str) -> tuple[str, str]:
        """State and reason in the ready file."""
        return next((m["state"], m["reason"]) for m in self.status["models"] if m["name"] == model)

    def get(self, path: str) -> tuple[int, Any]:
        return call(self.url + path)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        return call(self.url + path, json.dumps(body).encode())

    def infer(self, model: str, tensor: np.ndarray[Any, Any], name: str = "input") -> tuple[int, Any]:
        """An inference of one FP32 tensor with JSON data both ways."""
        spec = {"name": name, "shape": list(tensor.shape), "datatype": "FP32", "data": tensor.ravel().tolist()}
        return self.post(f"/v2/models/{model}/infer", {"inputs": [spec]})

    def index(self) -> dict[str, dict[str, Any]]:
        """The repository index by model name."""
        return {entry["name"]: entry for entry in self.post("/v2/repository/index", {})[1]}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and answers the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def call(url: str, body: bytes | None = None) -> tuple[int, Any]:
    """Status and parsed JSON of a GET, or of a POST where there is a body."""
    request = urllib.request.Request(url, data=body)  # our own server
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    return status, json.loads(text) if text else None


@contextlib.contextmanager
def serve(
    *options: str | Path, repository: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """A server with these options that has started its models; killed at the end if it still runs."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "efserve", "serve", "--http-port", "0", "--grpc-port", "0"]
        command += ["--metrics-port", "0"]
        command += ["--ready-file", str(ready)]
        if repository is not None:
            command += ["--model-repository", str(repository)]
        command += map(str, options)
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        server = RunningServer(process, {})
        started = threading.Event()

        def read() -> None:
            for line in process.stderr or ():
                with server.heard:
                    server.printed.append(line)
                    server.heard.notify_all()
                if line.startswith("Ctrl-C"):
                    started.set()
            started.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert started.wait(60), "the server did not start in time"
            assert ready.exists(), "".join(server.printed)
            server.status = json.loads(ready.read_text())
            yield server
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=30)
            if process.stderr:
                process.stderr.close()
