"""`efserve devices`: options -> DevicesJob -> devices -> tables or JSON."""

from typing import TYPE_CHECKING

import click

from efserve.commands._output import print_json
from efserve.devices.cgroup import core_ranges
from efserve.inspection.devices import DevicesJob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

    from efserve.devices.cpu import HostCpu
    from efserve.devices.gpu import Gpu, GpuFacts
    from efserve.inspection.devices import Devices


@click.command()
@click.option(
    "--deadline-s",
    type=click.FloatRange(0, min_open=True),
    default=DevicesJob().deadline_s,
    show_default=True,
    help="How long NVIDIA's driver may take to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON.")
def command(deadline_s: float, as_json: bool) -> None:
    """Show this machine's processor and GPUs: what there is, what is used, what limits it."""
    from efserve.inspection.devices import devices

    found = devices(DevicesJob(deadline_s))
    if as_json:
        print_json(found)
        return

    from efserve.console import out

    show(found, out())


def show(found: "Devices", console: "Console") -> None:
    """The devices as tables."""
    console.print(_facts_table("CPU", _cpu_rows(found.cpu)), "")
    for gpu in found.gpu.gpus:
        console.print(_facts_table(f"GPU {gpu.index}", _gpu_rows(gpu, found.gpu)), "")
        if gpu.mig_slices:
            console.print(_slices_table(gpu), "")
        if gpu.processes:
            console.print(_process_table(gpu), "")
    for index in found.gpu.unreachable:
        console.print(f"GPU {index}: cannot be reached")
    if found.gpu.problem:
        console.print(f"GPUs: {found.gpu.problem}", markup=False)


def _cpu_rows(cpu: "HostCpu") -> "Iterator[tuple[str, str]]":
    limits = cpu.cgroup
    yield "model", cpu.model
    told = f"{len(cpu.cores)} of {cpu.cores_of_machine} ({core_ranges(cpu.cores)})"
    yield "cores", told if len(cpu.siblings) == len(cpu.cores) else f"{told} on {len(cpu.siblings)} physical cores"
    if limits.cpu_quota_cores is not None:
        yield "quota", f"{limits.cpu_quota_cores:g} cores; {cpu.usable_cores} usable at once"
    for node in cpu.numa_nodes:
        memory = f", {_size(node.memory_bytes)}" if node.memory_bytes else ""
        yield f"NUMA node {node.node}", f"cores {core_ranges(node.cores)}{memory}"
    for cache in cpu.caches:
        kind = {"data": "d", "instruction": "i"}.get(cache.kind, "")
        yield f"cache L{cache.level}{kind}", f"{cache.count} x {_size(cache.size_bytes)}"
    yield "memory", f"{_size(cpu.memory_total_bytes)}, {_size(cpu.memory_available_bytes)} available"
    if limits.memory_limit_bytes is not None:
        yield "memory limit", _size(limits.memory_limit_bytes)
    yield "control groups", ", ".join(f"v{version}" for version in limits.versions) or "none"


def _gpu_rows(gpu: "Gpu", facts: "GpuFacts") -> "Iterator[tuple[str, str]]":
    reading = gpu.reading
    yield "name", gpu.name
    yield "uuid", gpu.uuid
    capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
    yield "SMs", f"{_known(gpu.sm_count)}, compute capability {capability}"
    yield "memory", f"{_size(gpu.memory_total_bytes)}, {_size(gpu.memory_used_bytes)} used"
    yield "driver", f"{_known(facts.driver_version)}, CUDA up to {_known(facts.cuda_version)}"
    yield "compute mode", _known(gpu.compute_mode)
    yield "MIG", {None: "not known to this GPU", True: "on", False: "off"}[gpu.mig_enabled]
    yield "MPS", f"{len(gpu.mps_servers)} server(s), {len(gpu.mps_clients)} client(s)"
    yield "utilisation", f"{_known(reading.utilization_pct)} %, memory {_known(reading.memory_utilization_pct)} %"
    yield "SM clock", f"{_known(reading.sm_clock_mhz)} of {_known(reading.sm_clock_max_mhz)} MHz"
    yield "memory clock", f"{_known(reading.memory_clock_mhz)} of {_known(reading.memory_clock_max_mhz)} MHz"
    if reading.clock_reasons:
        yield "clocks held by", ", ".join(reading.clock_reasons)
    yield "temperature", f"{_known(reading.temperature_c)} °C"
    yield "power", f"{_known(reading.power_w)} of {_known(reading.power_limit_w)} W"


def _facts_table(title: str, rows: "Iterator[tuple[str, str]]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, title=title, title_style="bold", title_justify="left")
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _slices_table(gpu: "Gpu") -> "Table":
    rows = [
        (f"{gpu.index}:{part.index}", part.name, _known(part.sm_count), _size(part.memory_total_bytes), part.uuid)
        for part in gpu.mig_slices
    ]
    return _columns(("slice", "name", "SMs", "memory", "uuid"), rows)


def _process_table(gpu: "Gpu") -> "Table":
    rows = [(str(each.pid), each.name or "-", "+".join(each.kinds), _size(each.memory_bytes)) for each in gpu.processes]
    return _columns(("pid", "program", "uses it for", "memory"), rows)


def _columns(names: "Sequence[str]", rows: "Sequence[tuple[str, ...]]") -> "Table":
    from rich.markup import escape

    from efserve.reports.tables import PlainTable

    table = PlainTable()
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _known(value: object | None) -> str:
    return "unknown" if value is None else str(value)


def _size(count_bytes: int | None) -> str:
    if count_bytes is None:
        return "unknown"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count_bytes >= unit:
            return f"{count_bytes / unit:.4g} {name}"
    return f"{count_bytes >> 10} KiB"
