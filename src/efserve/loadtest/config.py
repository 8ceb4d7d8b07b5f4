"""What a benchmark is asked to do: one frozen value, checked once."""

from dataclasses import dataclass, fields
from pathlib import Path

from efserve.client.endpoint import Trust, is_grpc
from efserve.errors import UsageError
from efserve.loadtest.levels import parse_levels, parse_range, parse_rates
from efserve.records import Load
from efserve.stats import STABLE_WINDOWS

DEFAULT_WINDOW_MS = 1000
DEFAULT_CONCURRENCY = "1:10"
_MODES = ("concurrency", "request_rate", "schedule", "clients", "workload", "max_rate_under_slo", "cold")  # one of them
_SERVER_OPTIONS = ("model_repository", "engine", "instances", "threads", "max_batch", "queue_delay_us")
_OPEN = ("request_rate", "workload", "max_rate_under_slo")
# Option -> the loads that it is for.
_ONLY_WITH = {
    "load_shape": ("request_rate",),
    "request_count": ("concurrency", "request_rate", "workload"),
    "total_clients": ("clients",),
    "requests_per_client": ("clients",),
    "latency_threshold": ("concurrency", "request_rate"),
}


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """The options of `efserve bench`; those after `url` are for the embedded server. None or empty: not given."""

    concurrency: str = ""  # 1:10 where no other load is asked for
    request_rate: str = ""
    distribution: str = "constant"
    gamma_cv: float = 2.0
    load_shape: str | None = None
    schedule: str = ""  # file
    workload: str = ""  # file
    clients: int | None = None  # at a time
    total_clients: int | None = None
    requests_per_client: int | None = None
    request_count: int | None = None
    max_connections: int = 1024
    processes: int = 1
    latency_threshold: float | None = None  # ms
    search: str = "binary"  # or linear
    cold: int | None = None  # starts of the embedded server, instead of a load
    max_rate_under_slo: float | None = None  # ms
    goodput: tuple[str, ...] = ()  # MODEL=MS, or MS
    model: str = ""  # empty: the only or first model
    model_version: str = ""  # empty: the latest
    batch: int = 1
    input: str = "random"  # random, zero, a file .npz or .json, or a folder of images
    tensor_format: str = "auto"  # or json, binary
    shared_memory: str = ""  # system: tensors travel in shared memory, on one machine
    shape: tuple[str, ...] = ()  # NAME:DIM,DIM,...
    string_length: int = 16
    seed: int = 0
    duration_s: float = 5.0  # longest time that one level is measured
    warmup_s: float = 0.5
    window_ms: int = 0  # 0: 1000, or a third of the duration where that is less
    percentile: int | None = None  # latency that stands for a level; None: the mean
    timeout_s: float = 30.0  # of one request
    metrics_url: str = ""  # of the server's Prometheus page; empty: guessed
    url: str = ""  # empty: start the embedded server
    tls_ca: Path | None = None  # authorities to believe, PEM; None: the system's
    tls_insecure: bool = False  # believe any certificate
    protocol: str = ""  # with the embedded server: http (also where empty) or grpc
    model_repository: tuple[str, ...] = ()
    engine: str | None = None
    instances: int | None = None
    threads: int | None = None
    max_batch: int | None = None
    queue_delay_us: int | None = None

    @property
    def mode(self) -> str:
        """The option that says which load: one of `_MODES`."""
        return next((name for name in _MODES if getattr(self, name)), "concurrency")

    @property
    def loads(self) -> tuple[Load, ...]:
        """The levels to measure, or that a search chooses from; none where the loads come from a file or a search."""
        if self.mode == "request_rate":
            if self.load_shape:
                low, high, _ = parse_range(self.request_rate)
                label = f"{self.load_shape} {low:g}:{high:g}/s"
                return (Load("rate", high, self.distribution, self.load_shape, label),)
            return tuple(Load.rate(rate, self.distribution) for rate in parse_rates(self.request_rate))
        if self.mode == "clients":
            return (Load("clients", float(self.clients or 1), label=f"{self.clients} clients"),)
        if self.mode == "concurrency":
            levels = parse_levels(self.concurrency or DEFAULT_CONCURRENCY)
            return tuple(Load.closed(level) for level in levels)
        return ()

    @property
    def trust(self) -> Trust:
        """Whose certificates are believed."""
        return Trust(self.tls_ca, anybody=self.tls_insecure)

    @property
    def window_s(self) -> float:
        """Length of one measurement window."""
        return (
            self.window_ms / 1e3 if self.window_ms else min(DEFAULT_WINDOW_MS / 1e3, self.duration_s / STABLE_WINDOWS)
        )

    @property
    def slo_ms(self) -> dict[str, float]:
        """Latency goals by model, "" for the one that is measured. Raises UsageError."""
        goals = {}
        for text in self.goodput:
            model, _, number = text.rpartition("=")
            try:
                goals[model] = float(number)
            except ValueError:
                goals[model] = 0.0
            if not 0 < goals[model] < float("inf"):
                raise UsageError(f"--goodput: expected MODEL=MS such as resnet50=30, or MS alone; got '{text}'")
        return goals

    def server_options(self) -> dict[str, object]:
        """Options for the embedded server, by the name of the field, of those that were given."""
        given = {name: getattr(self, name) for name in _SERVER_OPTIONS if getattr(self, name) not in (None, ())}
        return given | {"allow_client_shm": True} if self.shared_memory and not self.url else given

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        self._check_modes()
        assert self.loads is not None  # parsing checks them
        assert self.slo_ms is not None
        if self.window_s * STABLE_WINDOWS > self.duration_s * 1.001:
            raise UsageError(
                f"--window {self.window_ms}: {STABLE_WINDOWS} windows of that many ms do not fit into "
                f"--duration {self.duration_s:g} s; shorten the window or lengthen the duration"
            )
        given = self.server_options()
        if self.url and given:
            option = _option(next(iter(given)))
            raise UsageError(f"{option} is for the embedded server, which --url replaces; give only one of the two")
        if self.url and self.cold:
            raise UsageError("--cold starts servers of its own, which --url replaces; give only one of the two")
        if self.url and self.protocol:
            raise UsageError(f"--protocol {self.protocol} is for the embedded server; the scheme of --url says which")
        if self.tensor_format == "json" and (is_grpc(self.url) or self.protocol == "grpc"):
            raise UsageError("--tensor-format json: gRPC has no such form; leave it out, or measure over HTTP")
        if self.model_version and not self.model:
            raise UsageError("--model-version needs --model")
        if self.clients and self.total_clients is not None and self.total_clients < self.clients:
            raise UsageError(f"--total-clients {self.total_clients} is less than --clients {self.clients} at a time")

    def _check_modes(self) -> None:
        modes = [name for name in _MODES if getattr(self, name)]
        searched = self.max_rate_under_slo is not None and modes == ["request_rate", "max_rate_under_slo"]
        if len(modes) > 1 and not searched:
            raise UsageError(f"{_option(modes[0])} and {_option(modes[1])} both say which load; give only one of them")
        for name, loads in _ONLY_WITH.items():
            if getattr(self, name) is not None and self.mode not in loads:
                raise UsageError(f"{_option(name)} goes with {' or '.join(map(_option, loads))} only")
        for name in ("request_count", "latency_threshold", "max_rate_under_slo"):
            if self.load_shape and getattr(self, name) is not None:
                raise UsageError(f"--load-shape lasts for --duration and does not go with {_option(name)}")
        if self.latency_threshold is not None and self.max_rate_under_slo is not None:
            raise UsageError("--latency-threshold and --max-rate-under-slo are two searches; give only one of them")
        if self.distribution != "constant" and self.mode not in _OPEN:
            raise UsageError(f"--distribution {self.distribution} goes with {' or '.join(map(_option, _OPEN))} only")
        if self.workload and (self.model or self.shape):
            raise UsageError(f"{_option('model' if self.model else 'shape')} does not go with --workload, which has it")

    def as_json(self) -> dict[str, object]:
        """All options by name, as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"tls_ca": None if self.tls_ca is None else str(self.tls_ca)}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
