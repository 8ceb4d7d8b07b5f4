"""Whatever clients and workers do, each request gets its own rows, or an error that it has earned; and only once."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efserve.errors import Cancelled, Unavailable
from efserve.inference import InferRequest, Outcome
from efserve.partition import Partition
from efserve.repository import read_model
from efserve.server.options import ServeConfig
from efserve.server.version import ServedVersion

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
dynamic_batching {
  priority_levels: 2 default_priority_level: 2
  default_queue_policy { allow_timeout_override: true max_queue_size: 24 }
}
"""
MODEL_PY = """
import os
class Model:
    def __init__(self, config, folder):
        pass
    def infer(self, inputs):
        x = inputs["x"]
        if (x < 0).any():
            os.kill(os.getpid(), 9)
        return {"y": x * 2 + 1}
"""
MAX_DEATHS = 3  # of one version; more would end it, which is another matter

# (what, which or how many, how)
Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 8), st.integers(1, 3)),
        st.tuples(st.just("send"), st.integers(1, 8), st.integers(1, 3)),
        st.tuples(st.just("hurry"), st.integers(1, 8), st.integers(1, 3000)),
        st.tuples(st.just("urge"), st.integers(1, 8), st.integers(1, 3)),
        st.tuples(st.just("poison"), st.integers(1, 3), st.just(1)),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("await"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 1), st.just(0)),
    ),
    min_size=5,
    max_size=60,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "m"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(MODEL_PY)
    return folder


class Asked:
    """A request, what it must be answered, and what it was."""

    def __init__(self, number: int, rows: int, columns: int) -> None:
        self.values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) + 1000 * number
        self.answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        shape = self.values.shape
        self.request = InferRequest(
            (self.values.tobytes(),),
            (shape,),
            rows,
            shape[1:],
            self.answered.set_result,  # raises when it is called twice
            arrival_ns=int(asyncio.get_running_loop().time() * 1e9),
        )

    def poison(self) -> None:
        self.values[0, 0] = -1
        self.request.tensors = (self.values.tobytes(),)

    def check(self) -> None:
        """The right rows, or an error with a reason."""
        outcome = self.answered.result()
        if isinstance(outcome, tuple):
            (output,) = outcome
            assert output.shape == self.values.shape
            assert output.data == (self.values * 2 + 1).tobytes()
        elif isinstance(outcome, Cancelled):
            assert self.request.cancelled
        elif "timeout expired" in str(outcome):
            assert self.request.timeout_us
        elif "died twice" in str(outcome):
            assert self.request.retried
        else:
            assert isinstance(outcome, Unavailable)
            assert str(outcome) == "Exceeds maximum queue size"


class Play:
    """Carries out the steps on one served version with two workers."""

    def __init__(self, model: Path) -> None:
        found = read_model(model).resolve(1)
        self.version = ServedVersion(found, {}, ServeConfig(), (Partition(),) * 2)
        self.asked: list[Asked] = []
        self.deaths = 0

    async def run(self, steps: Sequence[Step]) -> None:
        await self.version.start()
        try:
            assert self.version.is_ready
            for what, number, how in steps:
                await self.step(what, number, how)
            async with asyncio.timeout(30):
                await asyncio.gather(*(asked.answered for asked in self.asked))
        finally:
            await self.version.stop(5)
        for asked in self.asked:
            asked.check()

    async def step(self, what: str, number: int, how: int) -> None:
        match what:
            case "send" | "hurry" | "urge" | "poison":
                self.send(what, number, how)
            case "cancel" if self.asked:
                self.asked[number % len(self.asked)].request.cancel()
            case "turn":
                for _ in range(number):
                    await asyncio.sleep(0)
            case "await" if self.asked:
                async with asyncio.timeout(30):
                    await asyncio.wait((self.asked[number % len(self.asked)].answered,))
            case "kill" if self.deaths < MAX_DEATHS:
                self.deaths += 1
                workers = [worker for worker in self.version.workers.values() if worker.pid]
                if workers:
                    os.kill(workers[number % len(workers)].pid, signal.SIGKILL)

    def send(self, what: str, rows: int, how: int) -> None:
        asked = Asked(len(self.asked), rows, how if what in ("send", "urge") else 1)
        asked.request.priority = 1 if what == "urge" else 0
        if what == "hurry":
            asked.request.timeout_us = how
        if what == "poison":
            if self.deaths + 2 > MAX_DEATHS:
                return
            self.deaths += 2  # it is tried twice
            asked.poison()
        self.asked.append(asked)
        self.version.submit(asked.request)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_each_request_gets_its_own_rows(model: Path, steps: list[Step]) -> None:
    asyncio.run(Play(model).run(steps))
