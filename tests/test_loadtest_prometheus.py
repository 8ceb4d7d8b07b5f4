"""Reading metrics pages: Triton's, our own, and what is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efserve.frontend.metrics import HostCollector, expose
from efserve.loadtest.prometheus import Gauges, gauges, samples
from fakes import FakeModel, FakeService, identity_config

TRITON = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="cnn",version="1"} 12
nv_inference_request_success{model="cnn",version="2"} 30
nv_inference_request_success{model="other",version="1"} 5
nv_inference_pending_request_count{model="cnn",version="1"} 3
nv_inference_pending_request_count{model="other",version="1"} 4
nv_gpu_utilization{gpu_uuid="GPU-b"} 0.500000
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.250000
nv_gpu_power_usage{gpu_uuid="GPU-a"} 71.5
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 6.2e+09 1395066363000
nv_inference_request_duration_us{model="cnn",version="1"} 99
"""


def test_triton() -> None:
    assert gauges(TRITON) == Gauges(
        {
            "gpu_utilization_pct[0]": 25,
            "gpu_utilization_pct[1]": 50,
            "gpu_power_w": 71.5,
            "gpu_memory_used_bytes": 6.2e9,
            "pending_requests": 7,
        },
        {"cnn": 42, "other": 5},
    )
    assert gauges(TRITON).models == {"cnn", "other"}


def test_ours() -> None:
    name = 'od"d\\\nname'
    found = gauges(expose(FakeService(FakeModel(identity_config(name))), HostCollector()))
    assert found.models == {name}
    assert found.values.items() >= {"pending_requests": 0, "workers_rss_bytes": 1 << 20}.items()


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html>not found</html>",
        "nv_gpu_utilization",
        "nv_gpu_utilization{ 1",
        "nv_gpu_utilization x",
        " nv_gpu_utilization 1",
        "nv_gpu_utilization_total 1",
        '# nv_gpu_utilization{gpu_uuid="a"} 1',
    ],
)
def test_what_is_no_series_is_passed_over(page: str) -> None:
    assert gauges(page) == Gauges({}, {})


@settings(deadline=None)
@given(st.text())
def test_any_text_is_survived(page: str) -> None:
    gauges(page)
    gauges("nv_gpu_utilization{" + page)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_labels_keep_any_name(model: str) -> None:
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    (sample,) = samples(f'nv_inference_request_success{{model="{escaped}",version="1"}} 7\n')
    assert sample == ("nv_inference_request_success", {"model": model, "version": "1"}, 7.0)
