"""TorchScript on a GPU, with a stand-in for the GPU: real modules on the CPU's memory, in every precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efserve.errors import ConfigError, DeviceLost, InferenceFailed, LoadFailed
from efserve.model_config import ModelConfig
from efserve.tensors import Array, TensorSpec

torch = pytest.importorskip("torch")

from efserve.engines import base, cuda_torch  # noqa: E402  # behind the import that may skip
from efserve.engines.base import Source  # noqa: E402
from efserve.engines.cuda_torch import (  # noqa: E402
    CudaTorchEngine,
    TorchChoices,
    choices_of,
    prepared_module,
    select_outputs,
)
from efserve.partition import Partition  # noqa: E402
from torchscript_models import Net  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass
class CpuStage:
    """A "GPU" that is the CPU; a graph repeats its work into the same outputs, as a real one does."""

    device: Any = field(default_factory=lambda: torch.device("cpu"))
    refuses: str = ""
    lost: bool = False
    calls: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def wait(self) -> int:
        self.calls.append("wait")
        return 2500

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def capture(self, work: Callable[[], Sequence[Any]]) -> tuple[Callable[[], None], Sequence[Any]]:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.calls.append("capture")
        outputs = [torch.empty_like(tensor) for tensor in work()]

        def replay() -> None:
            self.calls.append("replay")
            for target, tensor in zip(outputs, work(), strict=True):
                target.copy_(tensor)

        return replay, outputs


CONFIG = ModelConfig(
    "net",
    "torchscript",
    8,
    (TensorSpec("image", "FP32", (3, 8, 8)),),
    (TensorSpec("map", "FP32", (8, 8, 8)), TensorSpec("mean", "FP32", ())),
)


def engine_of(choices: TorchChoices, stage: CpuStage | None = None, config: ModelConfig = CONFIG) -> CudaTorchEngine:
    torch.manual_seed(0)
    module, choices = prepared_module(scripted(Net().eval()), choices)
    return CudaTorchEngine(config, module, stage or CpuStage(), choices, None)


def scripted(module: Any) -> Any:
    return torch.jit.script(module)


def images(rows: int) -> Array:
    return np.random.default_rng(rows).random((rows, 3, 8, 8), np.float32)


def same(found: Any, expected: Any, atol: float) -> None:
    np.testing.assert_allclose(found, expected, atol=atol)


def eager(array: Array) -> list[Array]:
    torch.manual_seed(0)
    with torch.inference_mode():
        return [tensor.numpy() for tensor in Net().eval()(torch.from_numpy(array))]


@pytest.mark.parametrize(("precision", "tolerance"), [("", 1e-5), ("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_precision_answers_the_same_in_the_configs_datatypes(
    precision: str, tolerance: float, channels_last: bool
) -> None:
    engine = engine_of(TorchChoices(precision, channels_last=channels_last))
    for rows in (2, 2, 2, 2, 5):
        found = engine.infer([images(rows)])
        for array, expected in zip(found, eager(images(rows)), strict=True):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            same(array, expected, atol=tolerance)
    assert engine.choices.channels_last == (channels_last and precision in ("fp16", "bf16"))
    assert engine.device_ns == 2500
    engine.close()


def test_the_third_run_of_a_size_becomes_a_graph() -> None:
    stage = CpuStage()
    engine = engine_of(TorchChoices(), stage)
    for _ in range(2):
        engine.infer([images(3)])
    assert "capture" not in stage.calls
    stage.calls.clear()
    engine.infer([images(3)])
    assert stage.calls == ["begin", "capture", "replay", "end", "wait"]
    stage.calls.clear()
    (found, _) = engine.infer([2 * images(3)])
    assert stage.calls == ["begin", "replay", "end", "wait"]
    same(found, eager(2 * images(3))[0], atol=1e-5)
    assert [remark.text for remark in engine.remarks] == [
        "runs on cpu in the file's precision, 1 batch sizes as CUDA graphs"
    ]


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    engine = engine_of(TorchChoices(), CpuStage(refuses="operation not permitted when stream is capturing\nmore"))
    for _ in range(5):
        same(engine.infer([images(1)])[0], eager(images(1))[0], atol=1e-5)
    told = engine.remarks[1]
    assert told.is_warning
    assert told.text == "runs without CUDA graphs: operation not permitted when stream is capturing"
    without = engine_of(TorchChoices(graphs=False), stage := CpuStage())
    for _ in range(4):
        without.infer([images(1)])
    assert "capture" not in stage.calls


def test_a_bound_run_reads_and_writes_the_same_memory_again() -> None:
    engine = engine_of(TorchChoices("fp16"))
    source = images(4)
    targets = [np.zeros((4, 8, 8, 8), np.float32), np.zeros(4, np.float32)]
    run = engine.bind([source], targets)
    assert run is not None
    for factor in (1, 2, 3, 1):
        source[:] = factor * images(4)
        run()
        same(targets[0], eager(source)[0], atol=2e-2)
        same(targets[1], eager(source)[1], atol=2e-2)


def test_outputs_that_are_not_as_the_config_says() -> None:
    engine = engine_of(TorchChoices())
    run = engine.bind([images(1)], [np.zeros((1, 8, 8, 7), np.float32), np.zeros(1, np.float32)])
    assert run is not None
    with pytest.raises(InferenceFailed, match=r"output 'map' has shape \[1, 8, 8, 8\], the config says \[1, 8, 8, 7\]"):
        run()
    integers = ModelConfig("net", "torchscript", 8, CONFIG.inputs, (TensorSpec("map", "INT64", (8, 8, 8)),))
    with pytest.raises(InferenceFailed, match=r"output 'map' is torch.float32, the config says INT64"):
        engine_of(TorchChoices(), config=integers).infer([images(1)])


def test_a_fault_that_loses_the_device_is_told_apart() -> None:
    stage = CpuStage()
    engine = engine_of(TorchChoices(), stage)
    wrong = np.zeros((1, 5, 8, 8), np.float32)  # as if a kernel had failed
    with pytest.raises(RuntimeError, match="channels"):
        engine.infer([wrong])
    engine.infer([images(1)])
    stage.lost = True
    with pytest.raises(DeviceLost, match=r"the GPU is lost to this worker: .*; then: CUDA error: an illegal memory"):
        engine.infer([wrong])


def test_bf16_tensors_are_words_outside() -> None:
    specs = (TensorSpec("x", "BF16", (2,)),)
    module, choices = prepared_module(scripted(torch.nn.ReLU()), TorchChoices())
    engine = CudaTorchEngine(ModelConfig("m", "torchscript", 4, specs, specs), module, CpuStage(), choices, None)
    words = np.array([[0x3F80, 0xBF80]], np.uint16)  # 1 and -1
    (found,) = engine.infer([words])
    assert found.tolist() == [[0x3F80, 0]]
    target = np.ones((1, 2), np.uint16)
    run = engine.bind([words], [target])
    assert run is not None
    run()
    assert target.tolist() == [[0x3F80, 0]]


def test_choices_of_a_config() -> None:
    def config(**parameters: str) -> ModelConfig:
        return ModelConfig("m", parameters=parameters)

    assert choices_of(config()) == TorchChoices()
    chosen = choices_of(config(precision="bf16", cuda="no-graphs, tf32 no-channels-last"))
    assert chosen == TorchChoices("bf16", graphs=False, tf32=True, channels_last=False)
    with pytest.raises(ConfigError, match=r"parameter cuda has 'no-magic', expected words among channels-last, freeze"):
        choices_of(config(cuda="no-magic"))
    with pytest.raises(ConfigError, match="parameter precision is 'int8', expected one of fp32, fp16, bf16"):
        choices_of(config(precision="int8"))


def test_a_module_that_is_frozen_already_runs() -> None:
    torch.manual_seed(0)
    frozen = torch.jit.freeze(scripted(Net().eval()))
    module, choices = prepared_module(frozen, TorchChoices())
    assert module is frozen
    engine = CudaTorchEngine(CONFIG, module, CpuStage(), choices, None)
    same(engine.infer([images(2)])[0], eager(images(2))[0], atol=1e-5)
    with pytest.raises(LoadFailed, match="the module is frozen, so its weights cannot be turned into fp16"):
        prepared_module(frozen, TorchChoices("fp16"))


def test_outputs_by_name_and_by_position() -> None:
    specs = (TensorSpec("a", "FP32", ()), TensorSpec("b", "FP32", ()))
    one, two = torch.ones(1), torch.zeros(1)
    assert select_outputs({"b": two, "a": one, "c": two}, specs) == [one, two]
    assert select_outputs((one, two, two), specs) == [one, two]
    for answer, says in (
        ({"a": one}, "output 'b' is missing; the model returned"),
        ((one,), "output 'b' is missing; the model returned 1 tensors"),
        ("text", "the model returned str, expected a tensor"),
        ((one, 3), "the model returned int among its outputs"),
    ):
        with pytest.raises(InferenceFailed, match=says):
            select_outputs(answer, specs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_is_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    torch.jit.save(scripted(Net().eval()), str(tmp_path / "model.pt"))
    with pytest.raises(LoadFailed, match="a GPU was asked for, but torch finds none"):
        base.load("torchscript", Source(tmp_path, CONFIG, Partition(device="GPU-1")))
    assert cuda_torch.PARAMETER == "cuda"
