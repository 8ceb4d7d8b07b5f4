"""The server that a benchmark starts for itself: `efserve serve` as a child process on free ports, always stopped."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from efserve.errors import MeasurementFailed
from efserve.reasons import without_output

START_DEADLINE_S = 300.0
DRAIN_S = 5.0  # for SIGTERM to work, before SIGKILL
LOOK_S = 0.02  # how often to look for the ready file
STDERR_TAIL_BYTES = 4000


class WorkerStart(msgspec.Struct):
    """How long a worker took to be ready, and for what."""

    start_s: float  # from the start of its process
    import_s: float
    load_s: float  # the import included
    warmup_s: float


class _Model(msgspec.Struct):
    name: str
    state: str = "READY"
    reason: str = ""
    engine: str = ""
    starts: tuple[WorkerStart, ...] = ()


class _Ready(msgspec.Struct):
    """What the server writes into its ready file."""

    http: str
    models: list[_Model]
    grpc: str = ""
    metrics: str = ""
    models_at_s: float = 0.0  # by the monotonic clock: models began to load
    ready_at_s: float = 0.0  # the last of them was ready, or had failed


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running `efserve serve`."""

    url: str
    grpc_url: str  # empty: it was not asked to speak gRPC
    unready: dict[str, str]  # model that did not start -> first line of the reason
    process: asyncio.subprocess.Process
    printed: Path  # its stdout and stderr
    metrics_url: str
    models: tuple[_Model, ...] = ()
    models_at_s: float = 0.0
    ready_at_s: float = 0.0

    def check_alive(self) -> None:
        """Raises MeasurementFailed, with the server's last words, when it has ended."""
        if self.process.returncode is not None:
            raise MeasurementFailed(_last_words("the embedded server ended", self.process, self.printed))


@contextlib.asynccontextmanager
async def embedded_server(
    options: Mapping[str, object], models: tuple[str, ...] = (), *, grpc: bool = False
) -> AsyncIterator[EmbeddedServer]:
    """Start a server, wait until its models have started or failed, and stop it at the end.

    `options` are those of `efserve serve` by field name; `models` limits what it loads. The child is out of reach of
    the terminal's Ctrl-C, and ends by itself when this process dies. Raises MeasurementFailed.
    """
    with tempfile.TemporaryDirectory(prefix="efserve-bench-") as folder:
        ready, printed = Path(folder) / "ready.json", Path(folder) / "printed"
        with printed.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *_command(options, models, ready, grpc=grpc),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            status = await _status(process, ready, printed)
            unready = {model.name: _first_line(model) for model in status.models if model.state != "READY"}
            grpc_url = f"grpc://{status.grpc}" if status.grpc else ""
            yield EmbeddedServer(
                status.http,
                grpc_url,
                unready,
                process,
                printed,
                status.metrics,
                tuple(status.models),
                status.models_at_s,
                status.ready_at_s,
            )
        finally:
            await _stop(process)


def _command(options: Mapping[str, object], models: tuple[str, ...], ready: Path, *, grpc: bool) -> list[str]:
    command = [sys.executable, "-m", "efserve", "serve", "--http-port", "0", "--metrics-port", "0"]
    command += ["--grpc-port", "0"] if grpc else ["--no-grpc"]
    command += ["--ready-file", str(ready), "--exit-with-parent"]
    for name, value in [*options.items(), *(("model", model) for model in models)]:
        for single in value if isinstance(value, tuple) else (value,):
            command += ["--" + name.replace("_", "-"), str(single)]
    return command


async def _status(process: asyncio.subprocess.Process, ready: Path, printed: Path) -> _Ready:
    """What the ready file says, once the server has written it; a file cannot be awaited, so it is looked for."""
    ended = asyncio.ensure_future(process.wait())
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            while (status := _read(ready)) is None:
                await asyncio.wait([ended], timeout=LOOK_S)
                if ended.done():
                    raise MeasurementFailed(_last_words("the embedded server did not start", process, printed))
    except TimeoutError as exc:
        text = f"the embedded server did not start within {START_DEADLINE_S:g} s"
        raise MeasurementFailed(_last_words(text, process, printed)) from exc
    finally:
        ended.cancel()
    return status


def _read(ready: Path) -> _Ready | None:
    return msgspec.json.decode(ready.read_bytes(), type=_Ready) if ready.exists() else None


def _first_line(model: _Model) -> str:
    return without_output(model.reason).partition("\n")[0] or model.state


def _last_words(text: str, process: asyncio.subprocess.Process, printed: Path) -> str:
    tail = printed.read_bytes()[-STDERR_TAIL_BYTES:].decode("utf-8", "replace").strip()
    code = "" if process.returncode is None else f" (exit code {process.returncode})"
    return f"{text}{code}; it said:\n{tail}" if tail else f"{text}{code}, without a word"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    try:
        process.terminate()
        async with asyncio.timeout(DRAIN_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
