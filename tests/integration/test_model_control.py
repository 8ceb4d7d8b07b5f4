"""Loading, unloading and following a repository while the server runs, with Triton's own client."""

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from efserve.errors import RemoteError
from efserve.inspection.remote import ModelsJob, ServerModels
from live_server import RunningServer, serve

CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "input" data_type: TYPE_FP32 dims: 2 }
output { name: "output" data_type: TYPE_FP32 dims: 2 }
version_policy { all {} }
"""
MODEL_PY = """
class Model:
    def __init__(self, config, folder):
        {load}

    def infer(self, inputs):
        {body}
        return {{"output": inputs["input"] * {factor}}}
"""
EXPLICIT = ("--model-control-mode", "explicit")


def code(factor: int, body: str = "pass", load: str = "pass") -> str:
    return MODEL_PY.format(factor=factor, body=body, load=load)


def write(repository: Path, name: str, version: int, source: str, config: str = CONFIG) -> None:
    """A version of a model, put in place whole."""
    folder = repository / name / str(version)
    beside = repository / f".{name}"
    beside.mkdir()
    (beside / "model.py").write_text(source)
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / "config.pbtxt").write_text(config)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


@contextmanager
def explicit(repository: Path, *options: str | Path) -> Iterator[tuple[RunningServer, triton.InferenceServerClient]]:
    with (
        serve(*EXPLICIT, *options, repository=repository) as server,
        triton.InferenceServerClient(server.address, concurrency=8) as client,
    ):
        yield server, client


def factor_of(client: triton.InferenceServerClient, name: str, version: str = "") -> float:
    """What the model multiplies by."""
    tensor = triton.InferInput("input", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
    return float(client.infer(name, [tensor], model_version=version).as_numpy("output")[0, 0])


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


def test_load_and_unload(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    write(tmp_path, "other", 1, code(5))
    with explicit(tmp_path, "--load-model", "other") as (server, client):
        assert client.is_server_ready()
        assert server.index()["m"] == {"name": "m"}
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'm' is not found"):
            factor_of(client, "m")
        client.load_model("m")
        assert client.is_model_ready("m")
        assert factor_of(client, "m") == 2
        before = set(server.worker_pids)
        client.unload_model("m")
        (gone,) = before - set(server.worker_pids)
        assert ended(gone)
        assert server.index()["m"] == {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert not client.is_model_ready("m")
        assert client.is_server_ready()
        assert factor_of(client, "other") == 5
        client.load_model("m")
        assert factor_of(client, "m") == 2
        assert server.index()["m"] == {"name": "m", "version": "1", "state": "READY"}
        client.unload_model("never")
        assert server.stop() == 0


def test_a_load_takes_what_is_on_disk_now(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with explicit(tmp_path, "--load-model", "*") as (server, client):
        assert factor_of(client, "m") == 2
        write(tmp_path, "m", 2, code(3))
        client.load_model("m")
        assert factor_of(client, "m") == 3
        assert factor_of(client, "m", "1") == 2
        assert client.get_model_metadata("m")["versions"] == ["2", "1"]
        shutil.rmtree(tmp_path / "m" / "1")
        old = server.worker_pids
        client.load_model("m")
        with pytest.raises(InferenceServerException, match="'m' version 1 is not at ready state"):
            factor_of(client, "m", "1")
        assert all(ended(pid) for pid in old)
        assert len(set(server.worker_pids) - set(old)) == 1


def test_a_failed_load_leaves_what_was_served(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with explicit(tmp_path, "--load-model", "m") as (server, client):
        write(tmp_path, "m", 1, code(3, load="raise ValueError('no luck')"))
        with pytest.raises(InferenceServerException, match=r"failed to load 'm'.*version 1 .*no luck"):
            client.load_model("m")
        assert factor_of(client, "m") == 2
        assert server.index()["m"]["state"] == "READY"
        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: many")
        with pytest.raises(InferenceServerException, match="failed to load 'm', failed to poll from model repository"):
            client.load_model("m")
        assert factor_of(client, "m") == 2
        client.unload_model("m")
        write(tmp_path, "m", 1, code(3, load="raise ValueError('no luck')"))
        with pytest.raises(InferenceServerException, match="no luck"):
            client.load_model("m")
        assert server.index()["m"]["state"] == "UNAVAILABLE"
        assert "no luck" in server.index()["m"]["reason"]
        with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll"):
            client.load_model("nope")


def test_overrides(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with explicit(tmp_path, "--load-model", "m") as (_, client):
        config = client.get_model_config("m")
        config["max_batch_size"] = 2
        client.load_model("m", config=json.dumps(config))
        assert client.get_model_config("m")["max_batch_size"] == 2
        config["version_policy"] = {"latest": {"num_versions": 1}}
        client.load_model("m", config=json.dumps(config), files={"file:7/model.py": code(7).encode()})
        assert factor_of(client, "m") == 7
        assert client.get_model_metadata("m")["versions"] == ["7"]
        client.load_model("m")
        assert factor_of(client, "m") == 2
        client.load_model(
            "fresh", config=json.dumps({**config, "name": ""}), files={"file:1/model.py": code(9).encode()}
        )
        assert factor_of(client, "fresh") == 9


def test_a_config_that_came_with_a_load_is_kept_by_loads_without_one(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with explicit(tmp_path, "--load-model", "m") as (_, client):
        config = client.get_model_config("m")
        client.load_model("m", config=json.dumps({**config, "max_batch_size": 3}))
        client.load_model("m")
        assert client.get_model_config("m")["max_batch_size"] == 3
        write(tmp_path, "m", 2, code(7))  # what has changed on disk counts again
        client.load_model("m")
        assert client.get_model_config("m")["max_batch_size"] == config["max_batch_size"]
        client.load_model("m", config=json.dumps({**config, "max_batch_size": 3}))
        client.unload_model("m")
        client.load_model("m")
        assert client.get_model_config("m")["max_batch_size"] == config["max_batch_size"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"file:1/model.py": ""}, "Load parameter 'config' must be specified"),
        ({"config": "{}", "file:../m/1/model.py": ""}, "must stay within model directory"),
        ({"config": "{}", "file:/etc/x": ""}, "must stay within model directory"),
        ({"config": "{}", "file:1/x/../../../y": ""}, "must stay within model directory"),
        ({"config": "{}", "file:": ""}, "must stay within model directory"),
        ({"config": "{}", "file:1/model.py": "?"}, "not valid base64"),
        ({"config": "{}", "file:1": "", "file:1/model.py": ""}, "Invalid file parameter"),
        ({"config": "nonsense"}, "failed to load 'm', failed to poll from model repository"),
        ({"config": '{"default_model_filename": "../../x.py"}'}, "outside the model's folder"),
        ({"other": "x"}, "Unrecognized load parameter 'other'"),
    ],
)
def test_wrong_overrides_change_nothing(quiet: RunningServer, parameters: dict[str, str], says: str) -> None:
    status, answer = quiet.post("/v2/repository/models/m/load", {"parameters": parameters})
    assert status in (400, 500)
    assert says in answer["error"]
    assert quiet.index()["m"]["state"] == "READY"


def test_files_that_cannot_be_are_told_as_a_failed_load(quiet: RunningServer) -> None:
    parameters = {"config": "{}", f"file:{'A' * 256}": ""}
    status, answer = quiet.post("/v2/repository/models/m/load", {"parameters": parameters})
    assert status == 500
    told = answer["error"]
    assert told.startswith("failed to load 'm', failed to poll from model repository: Invalid file parameter")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("..", "model name must not contain path traversal characters"),
        ("a%2Fb", "model name must not contain path traversal characters"),
        ("..%2Fm", "model name must not contain path traversal characters"),
        ("%20..", "model name must not contain path traversal characters"),
        ("%20", "Model name cannot be empty. Please enter a valid name to deploy."),
    ],
)
def test_names_that_lead_elsewhere(quiet: RunningServer, name: str, says: str) -> None:
    status, answer = quiet.post(f"/v2/repository/models/{name}/load", {})
    assert status == 400
    assert says in answer["error"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write(repository, "m", 1, code(2))
    with serve(*EXPLICIT, "--load-model", "m", repository=repository) as server:
        yield server


def test_without_explicit_control_nothing_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with serve(repository=tmp_path) as server:
        status, answer = server.post("/v2/repository/models/m/unload", {})
        assert (status, answer) == (
            503,
            {"error": "explicit model load / unload is not allowed if polling is enabled"},
        )
        with pytest.raises(RemoteError, match=r"; start it with --model-control-mode explicit for that$"):
            asyncio.run(ServerModels(ModelsJob(url=server.url)).load("m"))


def test_reloads_under_load_fail_nothing(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    with explicit(tmp_path, "--load-model", "m") as (server, client), ThreadPoolExecutor(4) as pool:
        done: list[bool] = []

        def run() -> int:
            count = 0
            with triton.InferenceServerClient(server.address) as own:
                while not done:
                    assert factor_of(own, "m") in (2, 3)
                    count += 1
            return count

        running = [pool.submit(run) for _ in range(4)]
        try:
            for factor in (3, 2, 3):
                write(tmp_path, "m", 1, code(factor))
                client.load_model("m")
                assert factor_of(client, "m") == factor
        finally:
            done.append(True)
        assert all(future.result() for future in running)


def test_only_what_replaces_gives_way_while_it_loads(tmp_path: Path) -> None:
    told = tmp_path / "told"
    load = (
        f"import os; open({str(told)!r}, 'a').write(f'{{os.sched_getscheduler(0)}} '"
        " + (open('/proc/self/autogroup').read() if os.path.exists('/proc/self/autogroup') else '0') + '\\n')"
    )
    repository = tmp_path / "repository"
    repository.mkdir()
    write(repository, "m", 1, code(2, load=load))
    with explicit(repository, "--load-model", "m") as (server, client):
        client.load_model("m")
        assert factor_of(client, "m") == 2
        first, second = (line.split() for line in told.read_text().splitlines() if line)
        assert (first[0], first[-1]) == (str(os.SCHED_OTHER), "0")
        if Path("/proc/self/autogroup").exists():
            assert second[-1] in ("19", "10", "5")  # ever more, where nothing is left over
        serving = max(server.worker_pids)
        assert os.sched_getscheduler(serving) == os.SCHED_OTHER
        if Path("/proc/self/autogroup").exists():
            assert Path(f"/proc/{serving}/autogroup").read_text().split()[-1] == "0"


def test_loads_in_a_row_have_no_third_worker_at_once(tmp_path: Path) -> None:
    told = tmp_path / "told"
    load = (
        f"import atexit, os, threading; open({str(told)!r}, 'a').write(f'{{len(set(siblings()))}} '); "
        "atexit.register(threading.Event().wait, 0.3)"
    )
    siblings = """
def siblings():
    for task in Path(f"/proc/{os.getppid()}/task").iterdir():
        yield from (task / "children").read_text().split()
"""
    repository = tmp_path / "repository"
    repository.mkdir()
    write(repository, "m", 1, "import os\nfrom pathlib import Path\n" + siblings + code(2, load=load))
    with explicit(repository, "--load-model", "m") as (_, client):
        for _ in range(4):
            client.load_model("m")
        assert told.read_text().split() == ["1", "2", "2", "2", "2"]


def test_what_is_in_flight_ends_on_the_old_workers(tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    repository = tmp_path / "repository"
    repository.mkdir()
    os.mkfifo(started)
    os.mkfifo(go)
    wait = f"inputs['input'].any() and (open({str(started)!r}, 'w').close(), open({str(go)!r}).close())"
    write(repository, "m", 1, code(2, body=wait))
    with explicit(repository, "--load-model", "m") as (server, client), ThreadPoolExecutor(2) as pool:
        old = server.worker_pids
        pending = pool.submit(factor_of, client, "m")
        started.open().close()
        write(repository, "m", 1, code(3))
        client.load_model("m")
        assert factor_of(client, "m") == 3
        client.unload_model("m")
        assert {entry["state"] for entry in server.post("/v2/repository/index", {})[1]} <= {"UNLOADING", "UNAVAILABLE"}
        go.open("w").close()
        assert pending.result() == 2
        assert all(ended(pid) for pid in old)


def test_polling_follows_the_repository(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    poll = ("--model-control-mode", "poll", "--repository-poll-secs", "0.2")
    with serve(*poll, repository=tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        (old,) = server.worker_pids
        write(tmp_path, "m", 1, code(3))
        assert ended(old)
        assert factor_of(client, "m") == 3
        (old,) = server.worker_pids
        shutil.rmtree(tmp_path / "m")
        assert ended(old)
        assert not client.is_model_ready("m")
        with pytest.raises(InferenceServerException, match="not allowed if polling is enabled"):
            client.load_model("m")


def test_a_model_in_two_repositories_is_served_from_neither(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write(first, "m", 1, code(2))
    poll = ("--model-control-mode", "poll", "--repository-poll-secs", "0.2", "--model-repository", second)
    with serve(*poll, "-v", repository=first) as server, triton.InferenceServerClient(server.address) as client:
        (old,) = server.worker_pids
        write(second, "m", 1, code(3))
        assert ended(old)
        assert not client.is_model_ready("m")
        assert client.is_server_ready()
        reason = "model appears in two or more repositories"
        assert server.says("model=m unloaded")
        assert server.index()["m"] == {"name": "m", "state": "UNAVAILABLE", "reason": reason}
        shutil.rmtree(first / "m")
        assert server.says("model=m loaded")
        assert factor_of(client, "m") == 3
    with explicit(first, "--load-model", "*", "--model-repository", second) as (server, client):
        assert factor_of(client, "m") == 3
        write(first, "m", 1, code(4))
        with pytest.raises(InferenceServerException, match=r"failed to load 'm'.* two or more repositories: .*first"):
            client.load_model("m")
        assert factor_of(client, "m") == 3


def test_the_token_is_needed_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    (tmp_path / "repository").mkdir()
    (tmp_path / "m").rename(tmp_path / "repository" / "m")
    with explicit(tmp_path / "repository", "--admin-token-file", token) as (_, client):
        with pytest.raises(InferenceServerException, match="Authorization: Bearer"):
            client.load_model("m")
        client.load_model("m", headers={"Authorization": "Bearer s3cret"})
        assert factor_of(client, "m") == 2


def test_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "m", 1, code(2))

    def models(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "efserve", "models", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    with explicit(tmp_path) as (server, client):
        assert "not loaded" in models("--url", server.url).stdout
        assert models("load", "m", "--url", server.url).returncode == 0
        assert json.loads(models("--url", server.url, "--json").stdout)[0]["state"] == "READY"
        assert json.loads(models("--url", server.url, "config", "m").stdout)["max_batch_size"] == 4
        assert json.loads(models("--url", server.url, "stats", "m").stdout)[0]["name"] == "m"
        config, source = tmp_path / "config.json", tmp_path / "new.py"
        config.write_text(json.dumps(client.get_model_config("m")))
        source.write_text(code(8))
        override = ("--config", config, "--file", f"1/model.py={source}")
        assert models("load", "m", "--url", server.url, *override).returncode == 0
        assert factor_of(client, "m") == 8
        assert models("--url", server.url, "unload", "m").returncode == 0
        failed = models("--url", server.url, "load", "nope")
        assert failed.returncode == 1
        assert "failed to load 'nope'" in failed.stderr
        assert models("--url", server.url, "load", "m", "--file", "x").returncode == 2
