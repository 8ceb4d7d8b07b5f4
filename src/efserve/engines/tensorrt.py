"""ONNX models compiled by TensorRT for the GPU at hand, and plans that a config names.

What is not kept from an earlier start is built, which takes minutes and is told as it goes. Marked as unproved: it was
written after NVIDIA's documents and tested with stand-ins for the libraries, never on a GPU.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pycuda.driver  # noqa: F401  # here, so that its absence is told like that of any engine's library
import tensorrt

from efserve.config import kept_forms
from efserve.engines.base import Remark, Source
from efserve.engines.cuda_driver import CudaDriver, load_driver
from efserve.engines.cuda_pins import Pins
from efserve.engines.cuda_pycuda import PycudaDevice
from efserve.engines.cuda_runs import CudaRuns, check_datatypes
from efserve.engines.onnx_signature import read_signature
from efserve.engines.shape_ranges import shape_ranges
from efserve.engines.tensorrt_cache import FOLDER, PlanCache, read_secret
from efserve.engines.tensorrt_library import BuildTask, LoadedPlan, TensorRt
from efserve.engines.tensorrt_plan import Build, Machine, Precision, cannot_load, files_sha256, precision_of
from efserve.errors import LoadFailed
from efserve.model_config import FileSignature, ModelConfig
from efserve.tensors import Array

_BUILD_DEADLINE_S = 7200.0  # for another worker to finish the same plan


class TensorRtEngine:
    """One plan with its context, stream and buffers."""

    warmup_runs = 3  # the second run of a size leaves its graph, which the third is the first to launch

    def __init__(
        self, config: ModelConfig, version: str, runs: CudaRuns, plan: LoadedPlan, remarks: Sequence[Remark]
    ) -> None:
        self.config = config
        self.version = version
        self._runs = runs
        self._plan = plan
        self._remarks = remarks

    @property
    def device_ns(self) -> int:
        """How long the GPU computed in the last run, copies not counted."""
        return self._runs.device_ns

    @property
    def remarks(self) -> Sequence[Remark]:
        """Where the plan came from, and what is slower than it could be."""
        return (*self._remarks, *self._runs.remarks())

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the plan; outputs are new arrays."""
        return self._runs.infer(inputs)

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """A run from shared memory, page-locked, into shared memory."""
        return self._runs.bind(inputs, outputs)

    def close(self) -> None:
        """Unlock the memory, free the plan, then the device."""
        if self._runs.pins is not None:
            self._runs.pins.release()
        self._runs.close()
        self._plan.close()
        self._runs.device.close()


def load(source: Source) -> TensorRtEngine:
    """The plan of `model.onnx` for the process's first GPU, built where none is kept; or the plan that is named.

    LoadFailed where TensorRT cannot parse, build or load it; ConfigError where the config lacks what a plan needs.
    """
    driver: CudaDriver | None = None
    with suppress(OSError):
        driver = load_driver()
    device = PycudaDevice(driver, keeps_context=source.partition.means == "green")
    library = TensorRt(tensorrt)
    machine = Machine(device.name, device.compute_capability, library.version)
    path = source.file("model.onnx", ".plan")
    if path.suffix == ".onnx":
        plan, config, remark = _from_onnx(source, path, library, machine)
    else:
        named = library.load(path.read_bytes())
        if named is None:
            raise LoadFailed(cannot_load(path, machine, library.said))
        plan, remark = named, Remark(f"runs the plan {path.name}, which its config names")
        config = source.settle(FileSignature(plan.inputs, plan.outputs))
    inputs, outputs = (tuple(spec.name for spec in specs) for specs in (config.inputs, config.outputs))
    runs = CudaRuns(device, plan, inputs, outputs, Pins(driver) if driver is not None else None)
    runs.prepare()
    return TensorRtEngine(config, f"tensorrt {library.version}", runs, plan, (remark,))


def _from_onnx(
    source: Source, path: Path, library: TensorRt, machine: Machine
) -> tuple[LoadedPlan, ModelConfig, Remark]:
    config = source.settle(_signature(source.config, path))
    check_datatypes([spec.datatype for spec in (*config.inputs, *config.outputs)])
    build = Build(machine, precision_of(config), files_sha256(path), shape_ranges(config))
    cache = _cache(source.folder)
    data = cache.find(build) if cache else None
    remark = Remark(f"runs an {build.precision} plan that was kept from an earlier start")
    if data is None:
        source.settle(read_signature(path))  # a contradiction is better told before a build of minutes
        data, remark = _build(source, path, library, build, cache)
    plan = library.load(data)
    if plan is None:
        raise LoadFailed(f"TensorRT does not load the plan that it has built itself: {library.said}")
    source.settle(FileSignature(plan.inputs, plan.outputs))
    return plan, config, remark


def _cache(version_folder: Path) -> PlanCache | None:
    """Plans beside the model, or elsewhere where that cannot be written or is so wished; None: none is to be kept."""
    policy = kept_forms()
    if policy.is_off:
        return None
    place = policy.folder or (None if os.access(version_folder, os.W_OK) else policy.user_folder)
    name = hashlib.sha256(str(version_folder.resolve()).encode()).hexdigest()[:32]
    return PlanCache(place / name if place else version_folder / FOLDER, read_secret(policy.user_folder))


def _signature(config: ModelConfig, path: Path) -> FileSignature:
    """What the config says, where it says all; else what the file says."""
    if not (config.inputs and config.outputs):
        return read_signature(path)
    inputs, outputs = (
        tuple(replace(spec, dims=config.input_shape(spec)) for spec in specs)
        for specs in (config.inputs, config.outputs)
    )
    return FileSignature(inputs, outputs)


def _build(
    source: Source, path: Path, library: TensorRt, build: Build, cache: PlanCache | None
) -> tuple[bytes, Remark]:
    """The plan, built here and kept, or built by another worker in the meantime."""
    if cache is None:
        data, _ = _compiled(source, path, library, build, b"")
        return data, Remark(f"runs an {build.precision} plan that was built now and is not kept: EFSERVE_CACHE is off")
    try:
        with cache.building(build, _BUILD_DEADLINE_S, source.on_progress):
            found = cache.find(build)
            if found is not None:
                return found, Remark(f"runs an {build.precision} plan that another worker has just built")
            data, timings = _compiled(source, path, library, build, cache.timings(build))
            cache.store(build, data)
            cache.store_timings(build, timings)
    except OSError as error:
        data, _ = _compiled(source, path, library, build, b"")
        return data, Remark(f"its plan cannot be kept and is built at every start: {error}", is_warning=True)
    return data, Remark(f"runs an {build.precision} plan that was built now and is kept in {cache.plan_path(build)}")


def _compiled(source: Source, path: Path, library: TensorRt, build: Build, timings: bytes) -> tuple[bytes, bytes]:
    source.on_progress(f"builds its TensorRT plan in {build.precision}, which takes minutes")
    task = BuildTask(path, build.ranges, _model(path, build.precision), timings, source.partition.memory_limit_bytes)
    built = library.build(task, source.on_progress)
    return built.plan, built.timings


def _model(path: Path, precision: Precision) -> bytes | None:
    """What TensorRT shall read in place of the file; None: the file."""
    if precision == "fp32":
        return None
    import onnx  # here, for a plan that is kept needs it not

    from efserve.engines.onnx_precision import is_quantised, lowered

    model = onnx.load(str(path))
    if precision == "int8":
        if not is_quantised(model):
            raise LoadFailed(
                f"precision int8 needs a quantised {path.name}, with QuantizeLinear and DequantizeLinear nodes: "
                "efserve convert --precision int8 makes one"
            )
        return None
    data: bytes = lowered(model, precision).SerializeToString()
    return data
