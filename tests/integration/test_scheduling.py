"""Priorities, order and delays of a real server, as Triton's own tests look at them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http as triton

from live_server import RunningServer, serve

CONFIG = """
backend: "python"
max_batch_size: {max_batch}
input {{ name: "input" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "output" data_type: TYPE_FP32 dims: 1 }}
dynamic_batching {{ {batching} }}
"""
# Numbers its rows in the order in which they run.
COUNTS = """
import numpy as np
class Model:
    def __init__(self, config, folder):
        self.count = 0
    def infer(self, inputs):
        rows = len(inputs["input"])
        self.count += rows
        return {"output": np.arange(self.count - rows, self.count, dtype=np.float32).reshape(-1, 1)}
"""


def make(repository: Path, batching: str, max_batch: int) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "1" / "model.py").write_text(COUNTS)
    (repository / "m" / "config.pbtxt").write_text(CONFIG.format(batching=batching, max_batch=max_batch))


def place_of(client: triton.InferenceServerClient, priority: int) -> int:
    """When the request ran, among all."""
    tensor = triton.InferInput("input", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    return int(client.infer("m", [tensor], priority=priority).as_numpy("output")[0, 0])


def batch_sizes(server: RunningServer) -> list[tuple[int, int]]:
    """Batch size and number of runs."""
    statistics = server.get("/v2/models/m/stats")[1]["model_stats"][0]
    return [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in statistics["batch_stats"]]


def test_priorities_decide_who_runs_first(tmp_path: Path) -> None:
    levels = "priority_levels: 2 default_priority_level: 2 priority_queue_policy { key: 1 value { } }"
    make(tmp_path, levels, 1)
    with (
        serve(repository=tmp_path, environment={"TRITONSERVER_DELAY_SCHEDULER": "8"}) as server,
        triton.InferenceServerClient(server.address, concurrency=8) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        low = [pool.submit(place_of, client, number % 2 * 2) for number in range(5)]
        high = [pool.submit(place_of, client, 1) for _ in range(3)]
        assert sorted(future.result() for future in high) == [0, 1, 2]
        assert sorted(future.result() for future in low) == [3, 4, 5, 6, 7]
        assert server.get("/v2/models/m/config")[1]["dynamic_batching"]["priority_levels"] == 2


def test_a_delayed_scheduler_makes_whole_batches(tmp_path: Path) -> None:
    make(tmp_path, "preferred_batch_size: 4 preserve_ordering: true", 8)
    with (
        serve(repository=tmp_path, environment={"TRITONSERVER_DELAY_SCHEDULER": "12"}) as server,
        triton.InferenceServerClient(server.address, concurrency=12) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        places = list(pool.map(lambda _: place_of(client, 0), range(12)))
        assert sorted(places) == list(range(12))
        assert batch_sizes(server) == [(4, 3)]


def test_warm_up_samples_run_before_the_first_request(tmp_path: Path) -> None:
    make(tmp_path, "", 8)
    warmup = """
model_warmup {
  name: "five" batch_size: 5 count: 2
  inputs { key: "input" value { data_type: TYPE_FP32 dims: 1 random_data: true } }
}
"""
    path = tmp_path / "m" / "config.pbtxt"
    with serve(repository=tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        without = place_of(client, 0)
    path.write_text(path.read_text() + warmup)
    with serve(repository=tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        assert place_of(client, 0) == without + 10
        assert server.get("/v2/models/m/config")[1]["model_warmup"][0]["count"] == 2
    path.write_text(path.read_text().replace("TYPE_FP32 dims: 1 random", "TYPE_INT8 dims: 1 random"))
    with serve(repository=tmp_path) as server:
        assert "'input' is INT8, the model expects FP32" in server.index()["m"]["reason"]


def test_a_warm_up_sample_that_fails_is_named(tmp_path: Path) -> None:
    make(tmp_path, "", 8)
    with (tmp_path / "m" / "config.pbtxt").open("a") as config:
        sample = 'inputs { key: "input" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'
        config.write(f'model_warmup {{ name: "zero sample" {sample} }}\n')
    (tmp_path / "m" / "1" / "model.py").write_text("""
class Model:
    def __init__(self, config, folder):
        pass
    def infer(self, inputs):
        raise RuntimeError("An Error Occurred")
""")
    with serve(repository=tmp_path) as server:
        reason = server.index()["m"]["reason"]
    assert "failed to run warmup sample 'zero sample': RuntimeError: An Error Occurred;" in reason


@pytest.mark.parametrize(
    "option",
    [("--cache-bytes", "1000000"), ("--response-cache-byte-size", "1000000"), ("--cache-config", "local,size=1000000")],
    ids=lambda option: str(option[0]),
)
def test_equal_requests_are_answered_from_the_cache(tmp_path: Path, option: tuple[str, str]) -> None:
    make(tmp_path, "", 8)
    path = tmp_path / "m" / "config.pbtxt"
    path.write_text(path.read_text() + "response_cache { enable: true }")
    with (
        serve(*option, repository=tmp_path) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert place_of(client, 0) == place_of(client, 0)
        spent = server.get("/v2/models/m/stats")[1]["model_stats"][0]
        counts = {name: duration["count"] for name, duration in spent["inference_stats"].items()}
        assert (counts["cache_hit"], counts["cache_miss"]) == (1, 1)
        assert (counts["success"], counts["queue"], counts["compute_infer"]) == (2, 2, 1)
        assert (spent["inference_count"], spent["execution_count"]) == (1, 1)


def test_optional_inputs_are_not_in_the_model_s_dict(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.py").write_text("""
import numpy as np
class Model:
    def __init__(self, config, folder):
        pass
    def infer(self, inputs):
        return {"output": np.full((1, 1), sum(2 ** "abc".index(name) for name in inputs), np.float32)}
""")
    inputs = "".join(
        f'input {{ name: "{name}" data_type: {kind} dims: 1 optional: {str(optional).lower()} }}\n'
        for name, kind, optional in (
            ("a", "TYPE_STRING", "true"),
            ("b", "TYPE_FP32", "false"),
            ("c", "TYPE_INT8", "true"),
        )
    )
    output = 'output { name: "output" data_type: TYPE_FP32 dims: 1 }'
    (tmp_path / "m" / "config.pbtxt").write_text(f'backend: "python"\nmax_batch_size: 1\n{inputs}{output}')
    values = {"a": np.array([["x"]], np.object_), "b": np.ones((1, 1), np.float32), "c": np.ones((1, 1), np.int8)}
    with serve(repository=tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        for names, expected in (("b", 2), ("ab", 3), ("bc", 6), ("abc", 7), ("b", 2)):
            given = []
            for name in names:
                datatype = {"a": "BYTES", "b": "FP32", "c": "INT8"}[name]
                given.append(triton.InferInput(name, [1, 1], datatype))
                given[-1].set_data_from_numpy(values[name])
            assert client.infer("m", given).as_numpy("output")[0, 0] == expected
