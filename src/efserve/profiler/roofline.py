"""`efserve profile --roofline`: counts each model's operations and bytes, measures the device, puts the two together.

Reads ONNX files only, and runs no model: measured throughput is what earlier profiles say.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache

from efserve.devices.cpu import host_cpu
from efserve.errors import ConfigError, EfserveError, UsageError
from efserve.graph_cost.count import GraphCost, count
from efserve.graph_cost.graph import Graph, read_graph
from efserve.model_config import ModelConfig, complete
from efserve.profiler.devices import device_for
from efserve.profiler.options import ProfileConfig
from efserve.profiler.sampling import input_shapes
from efserve.profiler.shares import Device, Share
from efserve.profiler.targets import Target, batch_sizes, find_targets, sha256_of
from efserve.profiles import read_profile
from efserve.records import machine_facts
from efserve.roofline import Ceilings, ModelRoofline, compute_bound_from, point
from efserve.tensors import Shape

NO_ONNX = "the roofline reads ONNX files only, and this model has none; `efserve convert` writes one"


@dataclass(frozen=True, slots=True)
class RooflineResult:
    """Models under the ceilings of the device; a sentence for each that could not be counted, or has no ONNX file."""

    slug: str  # folder of the device below profiled_data
    ceilings: Ceilings
    models: tuple[ModelRoofline, ...]
    failures: tuple[str, ...]
    skipped: tuple[str, ...]  # not named in the options, and without an ONNX file


@dataclass(frozen=True, slots=True)
class _Counted:
    """A model whose graph is read: its cost at any batch."""

    target: Target
    config: ModelConfig  # complete
    dims: dict[str, Shape]  # of each input, without the batch
    batches: tuple[int, ...]
    cost: Callable[[int], GraphCost]

    @property
    def inputs(self) -> dict[str, str]:
        """As a profile tells them: input -> datatype and shape."""
        batch = ["batch"] if self.config.batches else []
        return {
            spec.name: f"{spec.datatype} [{','.join([*batch, *map(str, self.dims[spec.name])])}]"
            for spec in self.config.inputs
        }


def run(config: ProfileConfig, on_step: Callable[[str], None]) -> RooflineResult:
    """The roofline of every model that the config selects; `on_step` is told what is being done.

    Raises UsageError where the options contradict the repository or the machine, or no model can be counted.
    """
    device = device_for(config, machine_facts())
    share = _measured_share(device, config)
    on_step("reading graphs")
    counted, failures, skipped = _count_all(config, device.facts.slug)
    if not counted:
        raise UsageError(f"no model to draw a roofline of: {'; '.join((*failures, *skipped))}")
    precisions = {precision for model in counted for precision in model.cost(model.batches[0]).operations}
    on_step(f"measuring {share.name}")
    ceilings = _measure(share, precisions)
    models = tuple(_placed(model, ceilings, share.pct) for model in counted)
    return RooflineResult(device.facts.slug, ceilings, models, tuple(failures), tuple(skipped))


def _measured_share(device: Device, config: ProfileConfig) -> Share:
    """The largest share that the options name; of a GPU the whole, since its ceilings are measured in this process."""
    whole = replace(config, cores=(), shares=(), grid=False)
    return device.shares(whole if device.facts.gpu else config)[-1]


def _measure(share: Share, precisions: Collection[str]) -> Ceilings:
    if share.partition.is_gpu:
        from efserve.profiler.ceilings_gpu import measure_gpu

        return measure_gpu(share.partition.device, precisions)
    from efserve.profiler.ceilings import measure_cpu

    return measure_cpu(host_cpu(), share.partition.cores, precisions)


def _count_all(config: ProfileConfig, slug: str) -> tuple[list[_Counted], list[str], list[str]]:
    """The models with an ONNX file, counted; sentences for those that failed, and for those to be passed over."""
    found = find_targets(config, slug)
    counted, failures, skipped = list[_Counted](), list(found.failures), list[str]()
    readable = [target for target in found.targets if target.file.suffix == ".onnx"]
    for name in dict.fromkeys(target.model.model for target in found.targets):
        if name not in {target.model.model for target in readable}:
            (failures if config.model else skipped).append(f"{name}: {NO_ONNX}")
    for target in readable:
        try:
            counted.append(_counted(target, config))
        except EfserveError as error:
            failures.append(f"{target.model.model}: {error}")
    return counted, failures, skipped


def _counted(target: Target, config: ProfileConfig) -> _Counted:
    graph = read_graph(target.file)
    model = complete(target.model.config, graph.signature)
    dims = input_shapes(model, config.shape)
    batches = batch_sizes(config, model.max_batch_size) if model.batches else (1,)

    @cache
    def cost(batch: int) -> GraphCost:
        return _cost(graph, model, dims, batch)

    if not cost(batches[0]).total_operations:
        uncounted = cost(batches[0]).left_out
        why = f"these could not be counted: {', '.join(uncounted)}" if uncounted else "it only moves data"
        raise ConfigError(f"it computes nothing, so it has no roofline: {why}")
    return _Counted(target, model, dims, batches, cost)


def _cost(graph: Graph, model: ModelConfig, dims: dict[str, Shape], batch: int) -> GraphCost:
    rows = (batch,) if model.batches else ()
    return count(graph, {name: (*rows, *shape) for name, shape in dims.items()})


def _placed(model: _Counted, ceilings: Ceilings, share_pct: float) -> ModelRoofline:
    measured, remark = _measured(model, share_pct)
    return ModelRoofline(
        model=model.target.model.model,
        version=model.target.model.version,
        engine=model.target.model.engine,
        inputs=model.inputs,
        points=tuple(point(ceilings, batch, model.cost(batch), measured.get(batch)) for batch in model.batches),
        compute_bound_from=compute_bound_from(
            model.batches, lambda batch: ceilings.bound_of(model.cost(batch)) == "compute"
        ),
        remark=remark,
    )


def _measured(model: _Counted, share_pct: float) -> tuple[dict[int, float], str]:
    """Rows/s by batch as the model's profile has them for this share, or why it has none."""
    path = model.target.csv_path
    if not path.exists():
        return {}, f"there is no profile {path}"
    try:
        profile = read_profile(path)
    except ConfigError as error:
        return {}, str(error)
    if profile.facts.model_sha256 != sha256_of(model.target.file):
        return {}, f"{path} is the profile of another model file"
    if profile.facts.inputs != model.inputs:
        return {}, f"{path} was measured with other inputs: {profile.facts.inputs}"
    found = {row.batch: row.throughput_per_s for row in profile.rows if row.share_pct == share_pct}
    return found, "" if found else f"{path} has no rows for a share of {share_pct:g}%"
