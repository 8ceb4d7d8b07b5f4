"""The life of `efserve serve`: open the ports, start the models, serve until told to stop, drain, leave nothing."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

import msgspec
import uvloop

from efserve import files
from efserve.engines.tensorrt_machine import check_machine
from efserve.errors import LoadFailed, UsageError
from efserve.frontend.admin import Admin, read_token
from efserve.frontend.http1 import open_http
from efserve.frontend.port import Port
from efserve.frontend.service import Placement
from efserve.server.cache import ResponseCache
from efserve.server.catalog import Catalog
from efserve.server.control import RepositoryControl, repository_names
from efserve.server.listeners import listen_also, tls_context
from efserve.server.logs import LogSettings
from efserve.server.metrics_port import MetricsPort
from efserve.server.options import ServeConfig
from efserve.server.shared import Shared, mps_service
from efserve.server.tracing import Tracer, read_trace_config
from efserve.server.version import VersionState
from efserve.transport.regions import ClientRegions
from efserve.worker.spec import WorkerFacts

log = logging.getLogger(__name__)

_SPAWN_S = 0.01  # for the first workers to be started; what is not by then waits for some imports
_WORKER_STOP_S = 1.0  # for idle workers to end by themselves, however little is left of the time to drain


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """How long a worker took to be ready, and for what."""

    start_s: float  # from the start of its process
    import_s: float  # of the engine's library
    load_s: float  # of the model, with that import
    warmup_s: float


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How one model version came out of the start."""

    name: str
    version: str
    engine: str
    instances: int
    threads: int
    max_batch_size: int
    state: str
    reason: str
    placements: tuple[Placement, ...] = ()
    starts: tuple[WorkerStart, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What the server tells when every model has started or failed, for people and for the ready file."""

    pid: int
    http: str
    grpc: str  # empty: not offered
    metrics: str
    models: tuple[ModelStatus, ...]
    notes: tuple[str, ...] = ()  # on what was asked for and is not quite what there is
    models_at_s: float = 0.0  # when models began to load, by the machine's monotonic clock
    ready_at_s: float = 0.0  # when each was ready or had failed


def run(config: ServeConfig, on_ready: Callable[[ServerStatus], None]) -> None:
    """Serves until SIGTERM, SIGINT or, if so configured, until stdin closes.

    Raises UsageError for ports that cannot be had, and with `exit_on_error` LoadFailed for a model that does not start.
    """
    uvloop.run(_serve(config, on_ready))


async def _serve(config: ServeConfig, on_ready: Callable[[ServerStatus], None]) -> None:
    if config.ready_file is not None:
        _remove(config.ready_file)  # of an earlier run: whoever waits for the file waits for this one
    catalog = Catalog(partial(repository_names, config), strict=config.strict_readiness)
    shared = Shared(
        ClientRegions(allowed=config.allow_client_shm),
        Tracer(*read_trace_config(config.trace_config, config.trace_file)),
        ResponseCache(config.cache_bytes) if config.cache_bytes else None,
        mps_service(config.mps),
    )
    logs = LogSettings()
    _check_tensorrt(config)
    control = RepositoryControl(catalog, config, shared)
    control.find()
    admin = Admin(control, read_token(config.admin_token_file), shared.tracer, logs)
    http = open_http(
        catalog,
        max_request_bytes=config.max_request_bytes,
        server_name=config.server_name,
        admin=admin,
        memory=shared.memory,
    )
    ports, grpc_port = [http], 0
    metrics = MetricsPort(catalog)
    tls = tls_context(config.tls_cert, config.tls_key)
    stop = _StopSignal()
    with stop.installed(config.exit_with_parent):
        logs.install()
        try:
            http_port = await _listen(partial(http.start, tls=tls), config.host, config.http_port, "--http-port")
            await listen_also(http, config.listen, tls)
            models_at_s = monotonic()
            starting = asyncio.ensure_future(control.start())
            await asyncio.wait({starting}, timeout=_SPAWN_S)  # workers load on other cores while we import the rest
            if config.grpc:
                ports.append(_open_grpc(catalog, config, admin, shared.memory))
                grpc_port = await _listen_grpc(ports[-1], config)
            metrics_port = await _listen(metrics.start, config.host, config.metrics_port, "--metrics-port")
            if not await stop.during(starting):
                return
            host = f"[{config.host}]" if ":" in config.host else config.host
            urls = (
                f"{'https' if tls else 'http'}://{host}:{http_port}",
                f"{host}:{grpc_port}" if config.grpc else "",
                f"http://{host}:{metrics_port}",
            )
            status = _status(catalog, control.allotment.notes, *urls)
            status = replace(status, models_at_s=models_at_s, ready_at_s=monotonic())
            _report(status, config, on_ready)
            gc.freeze()  # what has been loaded stays: no collection needs to look at it again
            await stop.wait()
        finally:
            logs.remove()
            try:
                await _shut_down(catalog, control, ports, metrics, stop, config.drain_s)
            finally:
                shared.tracer.close()
                await shared.mps.stop()


def _check_tensorrt(config: ServeConfig) -> None:
    """Raise LoadFailed where this machine cannot run what the command line asks of every model."""
    if config.trt and config.engine not in ("", "tensorrt"):
        raise UsageError(f"--trt and --engine {config.engine} contradict each other; give one of them")
    if config.trt or config.engine == "tensorrt":
        check_machine()


def _open_grpc(catalog: Catalog, config: ServeConfig, admin: Admin, memory: ClientRegions) -> Port:
    from efserve.frontend.grpc import open_grpc  # here, for it brings gRPC's messages, which not every server needs

    return open_grpc(
        catalog,
        max_request_bytes=config.max_request_bytes,
        server_name=config.server_name,
        admin=admin,
        memory=memory,
    )


async def _listen_grpc(grpc: Port, config: ServeConfig) -> int:
    tls = tls_context(config.tls_cert, config.tls_key, ("h2",))  # without which gRPC's clients do not connect
    return await _listen(partial(grpc.start, tls=tls), config.host, config.grpc_port, "--grpc-port")


async def _listen(start: Callable[[str, int], Awaitable[int]], host: str, port: int, option: str) -> int:
    try:
        return await start(host, port)
    except socket.gaierror as exc:
        raise UsageError(
            f"cannot listen on {host}: {exc.strerror}; name an address of this machine with --host"
        ) from exc
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno else exc  # uvloop's own words name the address once more
        raise UsageError(
            f"cannot listen on {host}:{port}: {why}; choose another port with {option} (0: any free)"
        ) from exc


def _status(catalog: Catalog, notes: tuple[str, ...], http: str, grpc: str, metrics: str) -> ServerStatus:
    served = [
        ModelStatus(
            name=version.name,
            version=version.version,
            engine=version.engine,
            instances=len(version.partitions),
            threads=version.partitions[0].threads,
            max_batch_size=version.config.max_batch_size,
            state=version.state.value,
            reason=version.reason,
            placements=tuple(version.placements()),
            starts=tuple(_start_of(worker.facts) for worker in version.workers.values() if worker.facts),
        )
        for version in catalog
    ]
    broken = [
        ModelStatus(entry.name, "", "", 0, 0, 0, entry.state, entry.reason)
        for entry in catalog.index(only_ready=False)
        if not entry.version
    ]
    green = list(dict.fromkeys(p.model for model in served for p in model.placements if p.means == "green"))
    if green:
        notes += (
            f"no MPS daemon serves the GPU of {', '.join(green)}: each holds its share by a green context, but "
            "processes on one GPU then run in turns, not side by side; `efserve mps start` changes that",
        )
    return ServerStatus(os.getpid(), http, grpc, metrics, (*served, *broken), notes)


def _start_of(facts: WorkerFacts) -> WorkerStart:
    return WorkerStart(facts.start_s, facts.import_s, facts.load_s, facts.warmup_s)


def _report(status: ServerStatus, config: ServeConfig, on_ready: Callable[[ServerStatus], None]) -> None:
    failed = [model for model in status.models if model.state != VersionState.READY.value]
    if config.ready_file is not None:
        files.write(config.ready_file, msgspec.json.encode(status))
    on_ready(status)
    if failed and config.exit_on_error:
        raise LoadFailed(f"model '{failed[0].name}' did not start: {failed[0].reason}")


def _remove(path: Path) -> None:
    try:
        if path.is_file():
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise UsageError(f"--ready-file {path} cannot be replaced: {exc.strerror}") from exc


async def _shut_down(
    catalog: Catalog,
    control: RepositoryControl,
    ports: list[Port],
    metrics: MetricsPort,
    stop: "_StopSignal",
    drain_s: float,
) -> None:
    """Stops accepting, lets what is in flight finish, ends the workers; a second signal skips the waiting."""
    catalog.set_stopping()
    for port in ports:
        port.stop_accepting()

    deadline_s = asyncio.get_running_loop().time() + drain_s

    async def politely() -> None:
        await control.stop()
        await asyncio.gather(*(port.drain(drain_s) for port in ports))
        left_s = max(_WORKER_STOP_S, deadline_s - asyncio.get_running_loop().time())
        await asyncio.gather(*(version.stop(left_s) for version in catalog))

    if not await stop.during(asyncio.ensure_future(politely())):
        for version in catalog:
            version.kill()
        await control.stop()
        await asyncio.gather(*(version.stop(0) for version in catalog))
    for port in ports:
        port.close()
    await metrics.stop()


class _StopSignal:
    """SIGINT, SIGTERM or a closed stdin, as something to wait for; each use of `during` notices the next one."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @contextlib.contextmanager
    def installed(self, watch_stdin: bool) -> Iterator[None]:
        """Handles the signals within the block."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._event.set)
        if watch_stdin:
            try:
                loop.add_reader(sys.stdin.fileno(), self._on_stdin)
            except PermissionError as exc:  # epoll's word for what is always ready
                raise UsageError("--exit-with-parent needs a pipe as stdin, which ends with the parent") from exc
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            if watch_stdin:
                loop.remove_reader(sys.stdin.fileno())

    async def wait(self) -> None:
        """Returns at the next stop signal."""
        await self._event.wait()
        self._event.clear()

    async def during(self, work: "asyncio.Future[None]") -> bool:
        """Waits for `work`; False when a stop signal came first, which ends the work."""
        signalled = asyncio.ensure_future(self.wait())
        await asyncio.wait((work, signalled), return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        if work.done():
            work.result()
            return True
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return False

    def _on_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._event.set()
