"""What a benchmark reads from a server's Prometheus page: a few series by name, from Triton's and efserve's pages.

Tolerant: lines that are something else, or malformed, are passed over. A page takes a fraction of a millisecond.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_WANTED = (
    "nv_gpu_utilization",
    "nv_gpu_power_usage",
    "nv_gpu_memory_used_bytes",
    "nv_inference_pending_request_count",
    "nv_inference_request_success",
    "efserve_placement_rss_bytes",
)
_VALUE = r'"(?:[^"\\\n]|\\.)*"'
_SERIES = re.compile(rf"^({'|'.join(_WANTED)})(?:{{((?:[^\"}}\n]|{_VALUE})*)}})?[ \t]+(\S+)", re.MULTILINE)
_LABEL = re.compile(rf"(\w+)=({_VALUE})")
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class Sample(NamedTuple):
    """One line of a page."""

    name: str
    labels: dict[str, str]
    value: float


def samples(page: str) -> Iterator[Sample]:
    """The wanted series of a page, as they come."""
    for name, labels, text in _SERIES.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        yield Sample(name, {key: _unquoted(quoted) for key, quoted in _LABEL.findall(labels)}, value)


def _unquoted(text: str) -> str:
    return re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), text[1:-1]) if "\\" in text else text[1:-1]


@dataclass(frozen=True, slots=True)
class Gauges:
    """A page, read: values by the name that the result file gives them."""

    values: dict[str, float]
    answered: dict[str, float]  # model -> requests since the server started

    @property
    def models(self) -> frozenset[str]:
        """The models that the page knows."""
        return frozenset(self.answered)


def gauges(page: str) -> Gauges:
    """Sums over versions and instances; GPUs one by one, numbered where there are several."""
    found = list(samples(page))
    values: dict[str, float] = {}
    for series, name, unit in (
        ("nv_gpu_utilization", "gpu_utilization_pct", 100),
        ("nv_gpu_power_usage", "gpu_power_w", 1),
        ("nv_gpu_memory_used_bytes", "gpu_memory_used_bytes", 1),
    ):
        per_gpu = sorted((s.labels.get("gpu_uuid", ""), s.value * unit) for s in found if s.name == series)
        for index, (_, value) in enumerate(per_gpu):
            values[f"{name}[{index}]" if len(per_gpu) > 1 else name] = value
    for series, name in (
        ("nv_inference_pending_request_count", "pending_requests"),
        ("efserve_placement_rss_bytes", "workers_rss_bytes"),
    ):
        numbers = [s.value for s in found if s.name == series]
        if numbers:
            values[name] = sum(numbers)
    answered: dict[str, float] = {}
    for sample in found:
        if sample.name == "nv_inference_request_success" and "model" in sample.labels:
            model = sample.labels["model"]
            answered[model] = answered.get(model, 0) + sample.value
    return Gauges(values, answered)
