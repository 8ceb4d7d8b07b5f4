"""Shares of the CPU as a served model has them: pinned as asked, kept, noticed where they are not, shown."""

import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_models
from efserve.devices.cpu import available_cores
from live_server import RunningServer, serve

TWO_CORES = pytest.mark.skipif(len(available_cores()) != 2, reason="its shares are those of a machine with 2 cores")
pytestmark = TWO_CORES

HEAD = """
backend: "python"
max_batch_size: 4
input { name: "input" data_type: TYPE_FP32 dims: 2 }
output { name: "output" data_type: TYPE_FP32 dims: 2 }
"""
MODEL_PY = """
import os

class Model:
    def __init__(self, config, folder):
        {load}

    def infer(self, inputs):
        {body}
        return {{"output": inputs["input"]}}
"""


def write(repository: Path, name: str, *, config: str = "", load: str = "pass", body: str = "pass") -> None:
    """A model in Python that answers with its input."""
    folder = repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "config.pbtxt").write_text(HEAD + config)
    (folder / "model.py").write_text(MODEL_PY.format(load=load, body=body))


def parameter(key: str, value: float) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def placements(server: RunningServer, model: str) -> list[dict[str, Any]]:
    """What the server tells of a model's instances."""
    status, found = server.get("/v2/efserve/placements")
    assert status == 200
    return [placement for placement in found if placement["model"] == model]


def cores(server: RunningServer, model: str) -> list[tuple[int, ...]]:
    """The cores of each instance, which all its threads must have, as the kernel tells."""
    found = []
    for placement in placements(server, model):
        tasks = Path(f"/proc/{placement['pid']}/task").iterdir()
        (only,) = {tuple(sorted(os.sched_getaffinity(int(task.name)))) for task in tasks}
        assert list(only) == placement["cores"] or not placement["cores"]
        found.append(only)
    return sorted(found)


def ask(server: RunningServer, model: str) -> int:
    return server.infer(model, np.ones((1, 2), np.float32))[0]


def refused(*options: str, repository: Path) -> str:
    """What a server that does not start says."""
    command = [sys.executable, "-m", "efserve", "serve", "--http-port", "0", "--model-repository", str(repository)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_each_model_runs_on_its_cores(tmp_path: Path) -> None:
    onnx_models.save(tmp_path, "a", onnx_models.cnn())
    write(tmp_path, "b")
    with serve("--share", "a=50", "--share", "b=50,cpu", repository=tmp_path) as server:
        assert cores(server, "a") == [(0,)]
        assert cores(server, "b") == [(1,)]
        (a,) = placements(server, "a")
        assert (a["share_pct"], a["obtained_pct"], a["threads"], a["state"]) == (50, 50, 1, "READY")
        assert a["process_threads"] >= 1
        (model,) = [model for model in server.status["models"] if model["name"] == "a"]
        assert model["placements"][0]["cores"] == [0]
        assert "core 0 (50 %)" in "".join(server.printed)
        assert server.stop() == 0


def test_models_without_a_share_run_on_what_is_left(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    write(tmp_path, "c", config="instance_group { count: 2 }")
    with serve("--share", "a=50", repository=tmp_path) as server:
        assert cores(server, "a") == [(0,)]
        assert cores(server, "b") == [(1,)]
        assert cores(server, "c") == [(1,), (1,)]


def test_without_shares_nothing_is_pinned(tmp_path: Path) -> None:
    write(tmp_path, "a", config="instance_group { count: 2 }")
    with serve(repository=tmp_path) as server:
        assert cores(server, "a") == [available_cores()] * 2
        assert all(placement["cores"] == [] for placement in placements(server, "a"))


def test_the_config_names_shares(tmp_path: Path) -> None:
    groups = 'instance_group [ { name: "one" kind: KIND_CPU }, { name: "two" kind: KIND_AUTO } ]\n'
    write(tmp_path, "a", config=groups + parameter("one.share_pct", 50) + parameter("two.memory_limit_mb", 300))
    write(tmp_path, "gpu", config="instance_group { kind: KIND_GPU gpus: [ 0 ] }")
    with serve(repository=tmp_path) as server:
        assert cores(server, "a") == [(0,), (1,)]
        assert sorted(place["memory_limit_bytes"] for place in placements(server, "a")) == [0, 300 * 2**20]
        assert server.get("/v2/models/a/config")[1]["instance_group"][1]["kind"] == "KIND_CPU"
        state, reason = server.state_of("gpu")
        assert state == "UNAVAILABLE"
        assert "instance group gpu_0 of model gpu specifies invalid or unsupported gpu id 0. GPUs with" in reason


def test_the_command_line_goes_before_the_config(tmp_path: Path) -> None:
    write(tmp_path, "a", config="instance_group { count: 2 }\n" + parameter("share_pct", 50))
    with serve("--share", "a=100", repository=tmp_path) as server:
        assert cores(server, "a") == [(0, 1)]
        assert server.get("/v2/models/a/config")[1]["instance_group"][0]["count"] == 1


def test_shares_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    assert "a 60 % + b 50 % = 110 %" in refused("--share", "a=60", "--share", "b=50", repository=tmp_path)
    assert "leave none for 'b'" in refused("--share", "a=100", repository=tmp_path)
    assert "model 'c', which is not served" in refused("--share", "c=10", repository=tmp_path)
    assert "there is no device 'gpu0'" in refused("--share", "a=10,gpu0", repository=tmp_path)


def test_a_restarted_worker_keeps_its_cores(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with serve("--share", "a=50", "--share", "a=50", repository=tmp_path) as server:
        assert cores(server, "a") == [(0,), (1,)]
        killed = placements(server, "a")[0]["pid"]
        os.kill(killed, signal.SIGKILL)
        assert ended(killed)
        assert server.says("worker ended: killed by SIGKILL")
        while len(placements(server, "a")) < 2 or any(p["state"] != "READY" for p in placements(server, "a")):
            assert ask(server, "a") == 200  # the other answers
        assert cores(server, "a") == [(0,), (1,)]
        now = placements(server, "a")
        assert [place["instance"] for place in now] == [0, 1]
        assert killed not in [place["pid"] for place in now]


def test_a_reload_keeps_the_cores_and_a_later_model_gets_the_rest(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    options = ("--model-control-mode", "explicit", "--share", "b=50", "--load-model", "b")
    with serve(*options, repository=tmp_path) as server:
        assert cores(server, "b") == [(0,)]
        assert server.post("/v2/repository/models/b/load", {})[0] == 200
        assert cores(server, "b") == [(0,)]
        assert server.post("/v2/repository/models/a/load", {})[0] == 200
        assert cores(server, "a") == [(1,)]
        assert server.post("/v2/repository/models/b/unload", {})[0] == 200
        write(tmp_path, "c", config=parameter("share_pct", 50))
        status, answer = server.post("/v2/repository/models/c/load", {})
        assert status >= 400
        assert "0 are free" in answer["error"]  # what --share gives stays given
        assert server.post("/v2/repository/models/b/load", {})[0] == 200
        assert cores(server, "b") == [(0,)]


def test_what_a_config_had_is_free_when_its_model_has_gone(tmp_path: Path) -> None:
    write(tmp_path, "a", config=parameter("share_pct", 100))
    write(tmp_path, "b", config=parameter("share_pct", 50))
    options = ("--model-control-mode", "explicit", "--load-model", "a")
    with serve(*options, repository=tmp_path) as server:
        status, answer = server.post("/v2/repository/models/b/load", {})
        assert status >= 400
        assert "a 100 % + b 50 % = 150 %" in answer["error"]
        assert server.post("/v2/repository/models/a/unload", {})[0] == 200
        assert server.post("/v2/repository/models/b/load", {})[0] == 200
        assert cores(server, "b") == [(0,)]


def test_a_share_that_is_not_applied_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a", load="os.sched_setaffinity(0, {0, 1})")
    write(tmp_path, "b")
    with serve("--share", "a=50", repository=tmp_path) as server:
        state, reason = server.state_of("a")
        assert state == "UNAVAILABLE"
        assert "it was to run on cores 0, but its threads run on 0, 1" in reason
        assert ask(server, "b") == 200
        assert ask(server, "a") >= 400


def test_memory_beyond_the_limit_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a", body='self.kept = b"x" * (120 << 20)')
    with serve("--memory-limit", "a=100M", repository=tmp_path) as server:
        (before,) = placements(server, "a")
        assert 0 < before["rss_bytes"] < before["memory_limit_bytes"] == 100 * 2**20
        assert ask(server, "a") == 200
        assert server.says("beyond its limit of 100 MiB")
        assert ask(server, "a") == 200  # it is told, not ended
        (after,) = placements(server, "a")
        assert after["pid"] == before["pid"]
        assert after["rss_bytes"] > after["memory_limit_bytes"]
        with urllib.request.urlopen(f"{server.status['metrics']}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        assert 'efserve_placement_memory_limit_bytes{device="cpu",instance="0",model="a",version="1"} 104857600' in text


def test_models_shows_placements(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with serve("--share", "a=50", "--memory-limit", "a=1G", repository=tmp_path) as server:
        command = [sys.executable, "-m", "efserve", "models", "--url", server.url]
        environment = {**os.environ, "COLUMNS": "100"}
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
        assert "core 0 (50 %)" in shown
        assert "of 1024 MiB" in shown
        told = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True).stdout
        (line,) = json.loads(told)
        assert line["placements"][0]["cores"] == [0]


def ended(pid: int) -> bool:
    """True when the process has ended within a while."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 20)[0])
    finally:
        os.close(fd)
