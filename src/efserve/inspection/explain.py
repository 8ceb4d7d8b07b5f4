"""What each field of a model's config means for it, where it came from, and what will surprise. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from efserve.model_config import DynamicBatching, ModelConfig, QueuePolicy
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
    """Where the model would run: workers, engine threads in each, and the cores for all of them."""

    instances: int
    threads: int
    cores: int


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
    counted = said if written.instance_count == place.instances else OPTION if written.instance_count else DEFAULT
    found.append(Field("instance_group", str(place.instances), counted, "worker processes, each with its own copy"))
    found.append(Field("threads", str(place.threads), DEFAULT, f"engine threads in each; {place.cores} cores in all"))
    policy = served.version_policy
    value = f"specific {list(policy.specific)}" if policy.specific else f"latest {policy.latest}"
    if not (policy.specific or policy.latest):
        value = "all"
    found.append(Field("version_policy", value, said, "which versions are served side by side"))
    for output, file in served.label_filenames.items():
        found.append(Field("label_filename", file, said, f"names of the classes of {output}"))
    for key, text in served.parameters.items():
        found.append(Field("parameters", f"{key} = {text}", said, "for the engine and for clients, as it is"))
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
    if place.instances * place.threads > place.cores:
        found.append(
            f"{place.instances} instances x {place.threads} threads are more than {place.cores} cores: they slow one "
            "another down; lower --instances or --threads"
        )
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
