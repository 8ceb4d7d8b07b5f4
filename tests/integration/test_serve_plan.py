"""Plans on a real server: the partitions that they say, turns on shared ones, and 503 for what would be late."""

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from efserve.cli import main
from efserve.devices.cpu import available_cores, cpu_model, cpu_slug
from efserve.planning.plan import Demand, Device, Placement, Plan, Tenant, plan_json
from live_server import RunningServer, serve

CONFIG = """
backend: "python"
max_batch_size: 16
input {{ name: "input" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "output" data_type: TYPE_FP32 dims: 1 }}
parameters {{ key: "path" value {{ string_value: "{path}" }} }}
"""
# Fails where another model of the same path runs at the same time.
ALONE = """
import os
class Model:
    def __init__(self, config, folder):
        self.path = config.parameters["path"]
    def infer(self, inputs):
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        sum(range(30_000))
        os.unlink(self.path)
        return {"output": inputs["input"]}
"""
# Runs until somebody has opened the pipe for writing, and closed it.
BLOCKS = """
class Model:
    def __init__(self, config, folder):
        self.path = config.parameters["path"]
    def infer(self, inputs):
        if inputs["input"].any():  # which is not so while it warms up
            open(self.path).read()
        return {"output": inputs["input"]}
"""
KIND = cpu_slug(cpu_model(), len(available_cores()))
CORES = len(available_cores())


def make(repository: Path, name: str, code: str, path: Path) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(path=path))


def tenant(model: str, batch: int, latency_ms: float, engine: str = "python") -> Tenant:
    return Tenant(model, engine, batch, 1, 10, batch / latency_ms * 1000, latency_ms, 2 * latency_ms)


def write_plan(path: Path, slo_ms: float, *placements: Placement) -> Path:
    models = sorted({t.model for placement in placements for t in placement.tenants})
    demands = tuple(Demand(model, 10, slo_ms) for model in models)
    path.write_bytes(plan_json(Plan("test", (Device("d", KIND),), demands, placements)))
    return path


def infer(server: RunningServer, model: str) -> int:
    return server.infer(model, np.ones((1, 1), np.float32))[0]


@pytest.mark.skipif(CORES < 2, reason="two partitions need two cores")
def test_partitions_and_batches_are_those_of_the_plan(tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path / "models", name, ALONE, tmp_path / name)
    half = 100 / CORES
    placements = (
        Placement("d", half, 10, (tenant("a", 2, 10),)),
        Placement("d", half, 10, (tenant("b", 8, 10),)),
    )
    plan = write_plan(tmp_path / "plan.json", 5000, *placements)
    with serve("--plan", plan, repository=tmp_path / "models") as server:
        assert {infer(server, model) for model in "ab"} == {200}
        placed = server.get("/v2/efserve/placements")[1]
        cores = [tuple(each["cores"]) for each in placed]
        assert [len(each) for each in cores] == [1, 1]
        assert cores[0] != cores[1]
        assert [each["share_pct"] for each in placed] == [half, half]
        sizes = {model: server.get(f"/v2/models/{model}/config")[1]["max_batch_size"] for model in "ab"}
        assert sizes == {"a": 2, "b": 8}


def test_a_plan_may_run_a_model_in_another_precision_under_its_name(tmp_path: Path) -> None:
    make(tmp_path / "models", "m", ALONE, tmp_path / "lock")
    make(tmp_path / "models", "m_int8", ALONE.replace('inputs["input"]', '2 * inputs["input"]'), tmp_path / "lock")
    plan = write_plan(tmp_path / "plan.json", 60_000, Placement("d", 100, 20, (tenant("m", 1, 10, "python:int8"),)))
    with serve("--plan", plan, repository=tmp_path / "models") as server:
        status, answer = server.infer("m", np.ones((1, 1), np.float32))
        assert (status, answer["model_name"], answer["outputs"][0]["data"]) == (200, "m", [2])
        assert server.get("/v2/models/m/config")[1]["name"] == "m"
    missing = write_plan(tmp_path / "plan.json", 60_000, Placement("d", 100, 20, (tenant("m", 1, 10, "python:bf16"),)))
    with serve("--plan", missing, repository=tmp_path / "models") as server:
        assert "the plan wants 'm' in bf16" in server.state_of("m")[1]


def test_models_that_share_a_partition_never_run_together(tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path / "models", name, ALONE, tmp_path / "lock")
    placement = Placement("d", 100, 20, (tenant("a", 4, 10), tenant("b", 4, 10)))
    plan = write_plan(tmp_path / "plan.json", 60_000, placement)
    with (
        serve("--plan", plan, repository=tmp_path / "models") as server,
        ThreadPoolExecutor(8) as pool,
    ):
        assert set(pool.map(lambda at: infer(server, "ab"[at % 2]), range(80))) == {200}
        assert server.stop() == 0


@pytest.mark.parametrize("late", ["drop", "serve"])
def test_what_would_be_late_is_refused_at_once_or_served(tmp_path: Path, late: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    make(tmp_path / "models", "m", BLOCKS, pipe)
    plan = write_plan(tmp_path / "plan.json", 25_000, Placement("d", 100, 10_000, (tenant("m", 1, 10_000),)))
    with (
        serve("--plan", plan, "--late", late, repository=tmp_path / "models") as server,
        ThreadPoolExecutor(3) as pool,
    ):
        first = pool.submit(infer, server, "m")
        writer = os.open(pipe, os.O_WRONLY)  # when the model has opened it, too
        waiting: set[Future[int]] = {pool.submit(infer, server, "m") for _ in range(2)}
        if late == "drop":
            done, waiting = wait(waiting, 30, FIRST_COMPLETED)
            assert [future.result() for future in done] == [503]
        os.close(writer)
        assert first.result(30) == 200
        while waiting:
            os.close(os.open(pipe, os.O_WRONLY))
            done, waiting = wait(waiting, 30, FIRST_COMPLETED)
            assert [future.result() for future in done] == [200]


def test_a_model_whose_workers_die_does_not_hold_up_its_partition(tmp_path: Path) -> None:
    make(tmp_path / "models", "a", ALONE, tmp_path / "lock")
    make(tmp_path / "models", "dies", ALONE.replace("os.close", "os._exit(3) or os.close"), tmp_path / "lock")
    placement = Placement("d", 100, 20, (tenant("a", 1, 10), tenant("dies", 1, 10)))
    plan = write_plan(tmp_path / "plan.json", 60_000, placement)
    with serve("--plan", plan, "--late", "serve", repository=tmp_path / "models") as server:
        assert infer(server, "dies") == 503
        assert [infer(server, "a") for _ in range(5)] == [200] * 5


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--instances", "2"), "--plan decides what --instances does"),
        (("--model", "a"), "--plan decides what --model does"),
        (("--model-control-mode", "explicit"), "--plan decides"),
        ((), "'m'"),  # no such model in the repository
    ],
)
def test_what_contradicts_a_plan_is_told(tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    make(tmp_path / "models", "a", ALONE, tmp_path / "lock")
    plan = write_plan(tmp_path / "plan.json", 60, Placement("d", 100, 20, (tenant("m", 1, 10),)))
    arguments = ["serve", "--model-repository", str(tmp_path / "models"), "--plan", str(plan), *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert why in done.output


def test_devices_that_are_not_here_are_told(tmp_path: Path) -> None:
    make(tmp_path / "models", "m", ALONE, tmp_path / "lock")
    placements = tuple(Placement(device, 100, 20, (tenant("m", 1, 10),)) for device in ("d", "e"))
    for kind, why in ((KIND, "2 processors"), ("a100", "2 GPUs")):
        plan = Plan("test", (Device("d", kind), Device("e", kind)), (Demand("m", 10, 60),), placements)
        (tmp_path / "plan.json").write_bytes(plan_json(plan))
        arguments = ["--model-repository", str(tmp_path / "models"), "--plan", str(tmp_path / "plan.json")]
        done = CliRunner().invoke(main, ["serve", *arguments])
        assert done.exit_code == 2
        assert why in done.output
