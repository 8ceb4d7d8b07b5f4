"""What this machine has, as plans name it."""

from dataclasses import replace

from efserve.devices.cpu import cpu_slug, host_cpu
from efserve.devices.gpu import Gpu, gpu_facts
from efserve.devices.nvml import connect
from efserve.planning.here import Kind, kinds_here, kinds_of
from fake_nvml import FakeNvml, h200


def card() -> Gpu:
    (gpu,) = gpu_facts(connect(FakeNvml(h200()))).gpus
    return replace(gpu, memory_total_bytes=141 * 10**9)


def test_gpus_are_counted_by_name_and_stand_before_the_processor() -> None:
    host = host_cpu()
    cards = [card(), replace(card(), memory_total_bytes=140 * 10**9), replace(card(), name="NVIDIA A100-SXM4-80GB")]
    a100, hopper, processor = kinds_of(cards, host)
    assert (a100.name, a100.count) == ("nvidia-a100-sxm4-80gb", 1)
    assert hopper == Kind("nvidia-h200", 2, 140_000)
    assert (processor.name, processor.count) == (cpu_slug(host.model, host.usable_cores), 1)
    assert 0 < processor.memory_mb <= host.memory_total_bytes / 1e6


def test_this_machine_has_a_processor() -> None:
    assert kinds_here()[-1].name.startswith("cpu-")
