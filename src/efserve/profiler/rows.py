"""From what was measured to what is written: the row of a point, the facts of a target."""

import statistics
from datetime import datetime

import numpy as np

from efserve import __version__
from efserve.profiler import sampling
from efserve.profiler.gauges import throttle_text
from efserve.profiler.options import ProfileConfig
from efserve.profiler.sampling import Point
from efserve.profiler.shares import DeviceFacts, Share
from efserve.profiler.targets import Target, sha256_of
from efserve.profiles import ProfileFacts, ProfileRow
from efserve.records import Machine
from efserve.worker.spec import WorkerFacts

MB = 1e6


def row_of(
    point: Point, worker: WorkerFacts, batch: int, share: Share, total_cores: int, first_ms: float
) -> ProfileRow:
    """The row that a measured point gives; `docs/profile.md` has the formulas."""
    p50_ms, p90_ms, p99_ms = (float(value) for value in np.percentile(point.spans_ms, (50, 90, 99)))
    cores, last = len(share.partition.cores), point.looks[-1]
    memories = [look.memory_bytes for look in point.looks if look.memory_bytes is not None]
    return ProfileRow(
        share_pct=share.pct,
        cores=cores,
        sm_count=worker.obtained.sm_count or None,
        batch=batch,
        repetitions=len(point.spans_ms),
        mean_ms=round(statistics.fmean(point.spans_ms), 4),
        std_ms=round(statistics.pstdev(point.spans_ms), 4),
        p50_ms=round(p50_ms, 4),
        p90_ms=round(p90_ms, 4),
        p99_ms=round(p99_ms, 4),
        ci_pct=round(sampling.median_ci_pct(point.spans_ms), 2),
        device_ms=round(statistics.fmean(point.device_ms), 4) if point.device_ms else None,
        roundtrip_ms=round(statistics.fmean(point.roundtrips_ms), 4),
        throughput_per_s=round(batch * point.batches_per_s, 2),
        utilization_pct=round(100 * point.cpu_s_per_s / cores, 1),
        gpu_util_pct=_rounded(last.gpu_util_pct),
        sm_util_pct=_rounded(last.sm_util_pct),
        dram_util_pct=_rounded(last.dram_util_pct),
        others_pct=round(100 * point.others_cpu_s_per_s / total_cores, 1),
        peak_memory_mb=round(point.peak_memory_bytes / MB, 1),
        device_memory_mb=round(max(memories) / MB, 1) if memories else None,
        clock_start_mhz=_rounded(point.looks[0].clock_mhz),
        clock_end_mhz=_rounded(last.clock_mhz),
        throttle=throttle_text(point.looks),
        ready_s=round(worker.start_s, 3),
        load_s=round(worker.load_s, 3),
        first_ms=round(first_ms, 4),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def facts_of(
    target: Target, worker: WorkerFacts, device: DeviceFacts, machine: Machine, config: ProfileConfig
) -> ProfileFacts:
    """The circumstances under which the target's rows are taken."""
    return ProfileFacts(
        model=target.model.model,
        version=target.model.version,
        engine=target.model.engine,
        engine_version=worker.engine_version,
        model_file=target.file.name,
        model_sha256=sha256_of(target.file),
        inputs=inputs_text(worker, config),
        device=device.slug,
        cpu_model=machine.cpu_model,
        total_cores=len(device.cores),
        threads=device.threads,
        share_means=device.means,
        gpu=device.gpu,
        driver=device.driver,
        min_repetitions=config.min_repetitions,
        min_time_s=config.min_time_s,
        efserve_version=__version__,
        kernel=machine.kernel,
        python=machine.python,
        libraries=machine.libraries,
        measured_at=now_text(),
    )


def inputs_text(worker: WorkerFacts, config: ProfileConfig) -> dict[str, str]:
    """Input -> datatype and shape that is run, such as "FP32 [batch,1,8,8]"."""
    shapes = sampling.input_shapes(worker.config, config.shape)
    batch = ["batch"] if worker.config.batches else []
    return {
        spec.name: f"{spec.datatype} [{','.join([*batch, *map(str, shapes[spec.name])])}]"
        for spec in worker.config.inputs
    }


def now_text() -> str:
    """Wall time, ISO 8601 with offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
