"""What a benchmark is asked to do: one frozen value, checked once."""

from dataclasses import dataclass, fields

from efserve.errors import UsageError
from efserve.loadtest.levels import parse_levels
from efserve.stats import STABLE_WINDOWS

DEFAULT_WINDOW_MS = 1000


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """The options of `efserve bench`; those after `url` are for the embedded server, and None where not given."""

    concurrency: str = "1:10"
    model: str = ""  # empty: the only or first model
    model_version: str = ""  # empty: the latest
    batch: int = 1
    input: str = "random"  # random, zero, or a file .npz or .json
    shape: tuple[str, ...] = ()  # NAME:DIM,DIM,...
    string_length: int = 16
    seed: int = 0
    duration_s: float = 5.0  # longest time that one level is measured
    warmup_s: float = 0.5
    window_ms: int = 0  # 0: 1000, or a third of the duration where that is less
    percentile: int | None = None  # latency that stands for a level; None: the mean
    timeout_s: float = 30.0  # of one request
    metrics_url: str = ""  # of the server's Prometheus page; empty: port 8002 of its host, where that knows the model
    url: str = ""  # empty: start the embedded server
    model_repository: tuple[str, ...] = ()
    engine: str | None = None
    instances: int | None = None
    threads: int | None = None
    max_batch: int | None = None
    queue_delay_us: int | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels, parsed."""
        return parse_levels(self.concurrency)

    @property
    def window_s(self) -> float:
        """Length of one measurement window."""
        return (
            self.window_ms / 1e3 if self.window_ms else min(DEFAULT_WINDOW_MS / 1e3, self.duration_s / STABLE_WINDOWS)
        )

    def server_options(self) -> dict[str, object]:
        """Options for the embedded server, by the name of the field, of those that were given."""
        names = ("model_repository", "engine", "instances", "threads", "max_batch", "queue_delay_us")
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        assert self.levels  # parsing checks them
        if self.window_s * STABLE_WINDOWS > self.duration_s * 1.001:
            raise UsageError(
                f"--window {self.window_ms}: {STABLE_WINDOWS} windows of that many ms do not fit into "
                f"--duration {self.duration_s:g} s; shorten the window or lengthen the duration"
            )
        given = self.server_options()
        if self.url and given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"{option} is for the embedded server, which --url replaces; give only one of the two")
        if self.model_version and not self.model:
            raise UsageError("--model-version needs --model")

    def as_json(self) -> dict[str, object]:
        """All options by name, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
