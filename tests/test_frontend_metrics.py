"""The metrics page: Triton's names and labels, plain decimals, formulas; and the index page."""

import re
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from efserve.devices.nvml import connect
from efserve.frontend.metrics import HostCollector, expose, gpu_metrics
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
    text = expose(busy_service(), HostCollector())
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
    for line in expose(busy_service(), HostCollector()).splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r"[a-z_]+(\{.*\})? -?\d+(\.\d+)?", line), line
            labels = re.findall(r'[{,](\w+)="', line)
            assert [label for label in labels if label != "le"] == sorted(label for label in labels if label != "le")


def samples_of(collector: HostCollector) -> dict[str, float]:
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_the_machine_tells_memory_and_how_busy_its_processors_were(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n")
    (proc / "stat").write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    clock = iter((10.0, 10.5, 11.0, 12.0))
    collector = HostCollector(tmp_path, lambda: next(clock))
    (proc / "stat").write_text("cpu  160 0 115 710 115 0 0 0 90 0\n")
    at_once, later = samples_of(collector), samples_of(collector)
    assert (at_once["nv_cpu_utilization"], later["nv_cpu_utilization"]) == (0, 0.75)
    assert (later["nv_cpu_memory_used_bytes"], later["nv_cpu_memory_total_bytes"]) == (600 * 1024, 1000 * 1024)
    assert samples_of(collector)["nv_cpu_utilization"] == 0  # nothing has been done since


def test_a_machine_that_tells_nothing_has_zeros(tmp_path: Path) -> None:
    assert set(samples_of(HostCollector(tmp_path)).values()) == {0}


def test_models_that_keep_answers_tell_how_often_they_had_them() -> None:
    plain, keeping = identity_config("plain"), replace(identity_config("keeping"), response_cache=True)
    page = expose(FakeService(FakeModel(plain), FakeModel(keeping)), HostCollector())
    cache = [line for line in page.splitlines() if line.startswith("nv_cache_")]
    assert len(cache) == 4
    assert all('model="keeping"' in line for line in cache)


def test_gpus_tell_what_they_can() -> None:
    shy = {"nvmlDeviceGetUUID": "GPU-b", "nvmlDeviceGetPowerUsage": 55_500}
    families = gpu_metrics(connect(FakeNvml(h200("GPU-a", nvmlDeviceGetTotalEnergyConsumption=1_234_500), shy)))
    samples = {(sample.name, sample.labels["gpu_uuid"]): sample.value for each in families for sample in each.samples}
    assert samples == {
        ("nv_gpu_utilization", "GPU-a"): 0.37,
        ("nv_gpu_power_usage", "GPU-a"): 118.25,
        ("nv_gpu_power_limit", "GPU-a"): 700,
        ("nv_energy_consumption", "GPU-a"): 1234.5,
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
