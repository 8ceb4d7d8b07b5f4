"""Cold starts: `efserve serve` started anew again and again, from the start of its process to the first inference.

Owns the measuring; the server tells its own phases in its ready file, by the clock that this process reads too.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median
from time import monotonic

from efserve import __version__
from efserve.client.server import v2_server
from efserve.client.v2 import V2Server
from efserve.cold_starts import ColdResult, ColdStart
from efserve.errors import MeasurementFailed
from efserve.loadtest.bench import CONTROL_DEADLINE_S, unless_stopped
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.embedded import EmbeddedServer, embedded_server
from efserve.loadtest.target import default_model, requests_of
from efserve.records import machine_facts

_WARM_REQUESTS = 20


async def measure_cold(
    config: BenchConfig, stop: asyncio.Event, on_start: Callable[[int, ColdStart], None]
) -> ColdResult:
    """Start the server 1 + `config.cold` times, one after the other, or until `stop` is set.

    `on_start` is told of each start, number 0 first. Raises UsageError, MeasurementFailed and RemoteError;
    MeasurementFailed too when `stop` is set before two starts are done.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    model, engine, starts = config.model, "", list[ColdStart]()
    for number in range(1 + (config.cold or 0)):
        try:
            model, engine, start = await unless_stopped(_start(replace(config, model=model)), stop)
        except MeasurementFailed:
            if stop.is_set() and len(starts) > 1:
                break
            raise
        starts.append(start)
        on_start(number, start)
    return ColdResult(
        schema_version=1,
        kind="cold",
        efserve_version=__version__,
        started_at=started_at,
        machine=machine_facts(),
        config=config.as_json(),
        model=model,
        engine=engine,
        first=starts[0],
        starts=tuple(starts[1:]),
        interrupted=stop.is_set(),
    )


async def _start(config: BenchConfig) -> tuple[str, str, ColdStart]:
    """The model, its engine, and one start of a server that has been stopped again."""
    models = (config.model,) if config.model else ()
    is_grpc = config.protocol == "grpc"
    begun_s = monotonic()
    async with embedded_server(config.server_options(), models, grpc=is_grpc) as server:
        client = v2_server(
            server.grpc_url if is_grpc else server.url, min(CONTROL_DEADLINE_S, config.timeout_s), config.trust
        )
        name = config.model or await default_model(client, server.unready)
        if name in server.unready:
            raise MeasurementFailed(f"model '{name}' did not start: {server.unready[name]}")
        first_ms, warm_ms = await _inferences(config, client, name)
        engine, phases = _phases(server, name, begun_s)
        return name, engine, ColdStart(**phases, first_ms=first_ms, warm_ms=warm_ms)


async def _inferences(config: BenchConfig, client: V2Server, name: str) -> tuple[float, float]:
    info = await client.model(name, config.model_version)
    binary = (await client.server()).binary if config.tensor_format == "auto" else config.tensor_format == "binary"
    inputs = requests_of(config, info)[0]
    latencies_ms = []
    for _ in range(1 + _WARM_REQUESTS):
        sent_s = monotonic()
        await client.infer(info, inputs, binary=binary)
        latencies_ms.append(1e3 * (monotonic() - sent_s))
    return latencies_ms[0], median(latencies_ms[1:])


def _phases(server: EmbeddedServer, name: str, begun_s: float) -> tuple[str, dict[str, float]]:
    timed = next(model for model in server.models if model.name == name)
    if not timed.starts:
        raise MeasurementFailed(f"the server tells no times of model '{name}': a worker of it died at once")
    last = max(timed.starts, key=lambda worker: worker.start_s)
    found = {
        "ready_s": server.ready_at_s - begun_s,
        "server_s": server.models_at_s - begun_s,
        "worker_s": last.start_s - last.load_s - last.warmup_s,
        "engine_s": last.import_s,
        "load_s": last.load_s - last.import_s,
        "warmup_s": last.warmup_s,
    }
    return timed.engine, {**found, "rest_s": 2 * found["ready_s"] - sum(found.values())}
