"""What each field of a model's config means for it, where it came from, and what will surprise. Pure."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from efserve.model_config import DynamicBatching, ModelConfig, QueuePolicy
from efserve.partition import Partition
from efserve.tensors import TensorSpec

WRITTEN, COMPLETED, DEFAULT, OPTION = "config.pbtxt", "model file", "default", "option"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a config as it will be served."""

    name: str
    value: str
    source: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model would run, alone on this machine: a partition per worker, and the cores for all of them."""

    partitions: tuple[Partition, ...]
    cores: int
    notes: tuple[str, ...] = ()  # on what its config asks for and cannot quite get
    is_by_option: bool = False  # the number of workers

    @property
    def threads(self) -> int:
        """Engine threads of all workers."""
        return sum(partition.threads for partition in self.partitions)


def fields(written: ModelConfig, served: ModelConfig, place: Place, *, has_file: bool) -> list[Field]:
    """The fields of `served`, which came of `written`; `has_file`: there is a config.pbtxt."""
    said = WRITTEN if has_file else DEFAULT
    found = [
        Field("engine", served.engine, said if written.engine else COMPLETED, "the library that runs the model"),
        Field(
            "max_batch_size",
            str(served.max_batch_size),
            said if written.max_batch_size == served.max_batch_size and written.inputs else COMPLETED,
            f"a run takes up to {served.max_batch_size} rows"
            if served.batches
            else "tensors have no batch dimension: a run takes one request",
        ),
    ]
    for kind, before, specs in (("input", written.inputs, served.inputs), ("output", written.outputs, served.outputs)):
        source = said if before else COMPLETED
        found.extend(
            Field(kind, f"{s.name} {s.datatype} {list(s.dims)}", source, _tensor(served, s, kind)) for s in specs
        )
    found.extend(_batching(written, served, said))
    found.extend(_instances(written, place, said))
    policy = served.version_policy
    value = f"specific {list(policy.specific)}" if policy.specific else f"latest {policy.latest}"
    if not (policy.specific or policy.latest):
        value = "all"
    found.append(Field("version_policy", value, said, "which versions are served side by side"))
    for output, file in served.label_filenames.items():
        found.append(Field("label_filename", file, said, f"names of the classes of {output}"))
    for key, text in served.parameters.items():
        found.append(Field("parameters", f"{key} = {text}", said, "for the engine and for clients, as it is"))
    if served.optimization:
        found.append(Field("optimization", served.optimization, said, "for Triton's backends and for clients"))
    return found


def surprises(served: ModelConfig, place: Place) -> list[str]:
    """What will not do what one might expect, each with what to change."""
    found = []
    batching = served.dynamic_batching
    if not served.batches:
        found.append(
            "the batch dimension is fixed (max_batch_size 0): requests run one by one; export the model with a free "
            "first dimension to batch"
        )
    elif served.max_batch_size == 1:
        found.append("max_batch_size is 1: no two requests share a run")
    elif batching is None:
        found.append(
            f"no dynamic_batching: a run takes up to {served.max_batch_size} rows, but only of one request; add "
            "'dynamic_batching { }' to gather requests"
        )
    if place.threads > place.cores:
        found.append(
            f"{len(place.partitions)} instances with {place.threads} threads in all are more than {place.cores} cores: "
            "they slow one another down; lower --instances or --threads"
        )
    if served.optimization:
        found.append(
            "optimization has no effect: engines choose by themselves; for TensorRT convert the model with --format "
            "tensorrt or serve it with --trt"
        )
    found.extend(place.notes)
    if batching is not None:
        found.extend(_batching_surprises(served, batching))
    return found


def _batching_surprises(served: ModelConfig, batching: DynamicBatching) -> Iterator[str]:
    delay_us, policy = batching.max_queue_delay_us, batching.queue_policy
    if delay_us:
        yield (
            f"a queue delay of {delay_us} us: a client that sends one request at a time waits for it every time and "
            "gains nothing"
        )
    preferred = batching.preferred_batch_sizes
    if preferred and max(preferred) < served.max_batch_size:
        yield (
            f"preferred_batch_size {list(preferred)} stays below max_batch_size {served.max_batch_size}: larger "
            "batches run only when the delay is over"
        )
    if policy.default_timeout_us and policy.default_timeout_us <= delay_us:
        yield (
            f"requests time out after {policy.default_timeout_us} us, which is no longer than the queue delay of "
            f"{delay_us} us: a lone request is always late"
        )


def _instances(written: ModelConfig, place: Place, said: str) -> Iterator[Field]:
    counted = OPTION if place.is_by_option else said if written.instance_groups else DEFAULT
    for partition, count in Counter(place.partitions).items():
        where = partition.device if partition.is_gpu else "the CPU"
        meaning = f"worker processes on {where}, each with its own copy"
        yield Field("instance_group", str(count), counted, meaning)
        if partition.share_pct:
            kept = f"its own {len(partition.cores)} of {place.cores} cores" if not partition.is_gpu else "no more SMs"
            yield Field("share_pct", f"{partition.share_pct:g}", said, f"of {where} for each of them: {kept}")
        if partition.memory_limit_bytes:
            mib = f"{partition.memory_limit_bytes / 2**20:g}"
            does = "no more can be allocated" if partition.is_gpu else "a worker that uses more is told in the log"
            yield Field("memory_limit_mb", mib, said, f"for each of them: {does}")
        yield Field("threads", str(partition.threads), DEFAULT, f"engine threads in each; {place.cores} cores in all")


def _batching(written: ModelConfig, served: ModelConfig, said: str) -> Iterator[Field]:
    batching = served.dynamic_batching
    source = COMPLETED if written.dynamic_batching is None else said
    if batching is None:
        yield Field("dynamic_batching", "off", said, "requests never share a run")
        return
    sizes = list(batching.preferred_batch_sizes) or [served.max_rows]
    yield Field("dynamic_batching", "on", source, f"requests that wait share a run, {sizes} rows if there are as many")
    delay_us = batching.max_queue_delay_us
    meaning = f"a request waits up to {delay_us} us for others" if delay_us else "what waits runs as soon as it can"
    yield Field("max_queue_delay_microseconds", str(delay_us), source, meaning)
    policy = batching.queue_policy
    if policy != QueuePolicy():
        limit = f"{policy.max_queue_size} requests" if policy.max_queue_size else "any number of requests"
        late = "refused" if policy.timeout_action == "REJECT" else "put behind the others"
        timeout = f"; after {policy.default_timeout_us} us they are {late}" if policy.default_timeout_us else ""
        yield Field("default_queue_policy", policy.timeout_action, source, f"{limit} may wait{timeout}")


def _tensor(config: ModelConfig, spec: TensorSpec, kind: str) -> str:
    verb = "send" if kind == "input" else "get"
    free = ", -1: any size" if -1 in config.input_shape(spec) else ""
    return f"clients {verb} {spec.datatype} of shape {list(config.input_shape(spec))}{free}"
