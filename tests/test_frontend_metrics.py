"""The metrics page: Triton's names and labels, plain decimals, formulas; and the index page."""

import re

from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from efserve.devices.nvml import connect
from efserve.frontend.metrics import expose, gpu_metrics
from efserve.frontend.web import create_app
from efserve.inference import BatchTiming, InferRequest
from fake_nvml import LIBRARY_NOT_FOUND, FakeNvml, h200
from fakes import FakeModel, FakeService, identity_config


def busy_service() -> FakeService:
    model = FakeModel(identity_config('od"d\\\nname'))
    requests = [InferRequest((b"",), ((2,),), 2, None, lambda outcome: None, arrival_ns=0) for _ in range(3)]
    timing = BatchTiming(10**15, 10**15 + 5000, 10**15 + 10**7, 10**15 + 10**7)
    model.counters.batch_done(requests, 6, timing, 2 * 10**15)
    model.counters.failed("REJECTED", 5)
    return FakeService(model, FakeModel(identity_config()))


def test_prometheus_reads_what_is_written() -> None:
    text = expose(busy_service())
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:  # the parser adds _total to every counter
            name, labels = sample.name.removesuffix("_total"), sample.labels
            samples[name, labels.get("model"), labels.get("reason") or labels.get("le")] = sample.value
    name = 'od"d\\\nname'
    assert samples["nv_inference_request_success", name, None] == 3
    assert samples["nv_inference_request_success", "identity", None] == 0
    assert samples["nv_inference_request_failure", name, "REJECTED"] == 1
    assert samples["nv_inference_count", name, None] == 6
    assert samples["nv_inference_exec_count", name, None] == 1
    assert samples["nv_inference_pending_request_count", name, None] == 0
    assert samples["nv_inference_request_duration_us", name, None] == 6 * 10**12
    assert samples["nv_inference_queue_duration_us", name, None] == 3 * 10**12
    assert samples["nv_inference_compute_input_duration_us", name, None] == 15
    assert samples["efserve_request_duration_seconds_sum", name, None] == 6 * 10**6
    assert samples["efserve_request_duration_seconds_bucket", name, "10"] == 0
    assert samples["efserve_request_duration_seconds_bucket", name, "+Inf"] == 3
    assert samples["efserve_batch_rows_bucket", name, "8"] == 1
    assert samples["efserve_placement_rss_bytes", "identity", None] == 1 << 20
    assert samples["process_resident_memory_bytes", None, None] > 0


def test_numbers_are_plain_and_labels_in_order() -> None:
    for line in expose(busy_service()).splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r"[a-z_]+(\{.*\})? -?\d+(\.\d+)?", line), line
            labels = re.findall(r'[{,](\w+)="', line)
            assert [label for label in labels if label != "le"] == sorted(label for label in labels if label != "le")


def test_gpus_tell_what_they_can() -> None:
    shy = {"nvmlDeviceGetUUID": "GPU-b", "nvmlDeviceGetPowerUsage": 55_500}
    families = gpu_metrics(connect(FakeNvml(h200("GPU-a"), shy)))
    samples = {(sample.name, sample.labels["gpu_uuid"]): sample.value for each in families for sample in each.samples}
    assert samples == {
        ("nv_gpu_utilization", "GPU-a"): 0.37,
        ("nv_gpu_power_usage", "GPU-a"): 118.25,
        ("nv_gpu_memory_used_bytes", "GPU-a"): 10**9,
        ("nv_gpu_memory_total_bytes", "GPU-a"): 141 * 10**9,
        ("nv_gpu_power_usage", "GPU-b"): 55.5,
    }


def test_a_machine_without_gpus_has_no_samples_of_them() -> None:
    assert not [each for each in gpu_metrics(connect(FakeNvml(init=LIBRARY_NOT_FOUND))) if each.samples]


def test_the_pages_exist() -> None:
    app = create_app(busy_service())
    assert isinstance(app, Starlette)
    assert [route.path for route in app.routes if hasattr(route, "path")] == ["/metrics", "/"]
