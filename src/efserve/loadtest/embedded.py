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

START_DEADLINE_S = 300.0
DRAIN_S = 5.0  # for SIGTERM to work, before SIGKILL
LOOK_S = 0.02  # how often to look for the ready file
STDERR_TAIL_BYTES = 4000


class _Ready(msgspec.Struct):
    http: str


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running `efserve serve`."""

    url: str
    process: asyncio.subprocess.Process
    printed: Path  # its stdout and stderr

    def check_alive(self) -> None:
        """Raises MeasurementFailed, with the server's last words, when it has ended."""
        if self.process.returncode is not None:
            raise self.failure("the embedded server ended")

    def failure(self, text: str) -> MeasurementFailed:
        """An error with this text and the server's last words."""
        return MeasurementFailed(_last_words(text, self.process, self.printed))


@contextlib.asynccontextmanager
async def embedded_server(options: Mapping[str, object], models: tuple[str, ...] = ()) -> AsyncIterator[EmbeddedServer]:
    """Start a server, wait until its models have started or failed, and stop it at the end.

    `options` are those of `efserve serve` by field name; `models` limits what it loads. The child is out of reach of
    the terminal's Ctrl-C, and ends by itself when this process dies. Raises MeasurementFailed.
    """
    with tempfile.TemporaryDirectory(prefix="efserve-bench-") as folder:
        ready, printed = Path(folder) / "ready.json", Path(folder) / "printed"
        with printed.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *_command(options, models, ready),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield EmbeddedServer(await _url(process, ready, printed), process, printed)
        finally:
            await _stop(process)


def _command(options: Mapping[str, object], models: tuple[str, ...], ready: Path) -> list[str]:
    command = [sys.executable, "-m", "efserve", "serve", "--http-port", "0", "--metrics-port", "0"]
    command += ["--ready-file", str(ready), "--exit-with-parent"]
    for name, value in [*options.items(), *(("model", model) for model in models)]:
        for single in value if isinstance(value, tuple) else (value,):
            command += ["--" + name.replace("_", "-"), str(single)]
    return command


async def _url(process: asyncio.subprocess.Process, ready: Path, printed: Path) -> str:
    """Where the server listens, once it has written its ready file; a file cannot be awaited, so it is looked for."""
    ended = asyncio.ensure_future(process.wait())
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            while (url := _read_url(ready)) is None:
                await asyncio.wait([ended], timeout=LOOK_S)
                if ended.done():
                    raise MeasurementFailed(_last_words("the embedded server did not start", process, printed))
    except TimeoutError as exc:
        text = f"the embedded server did not start within {START_DEADLINE_S:g} s"
        raise MeasurementFailed(_last_words(text, process, printed)) from exc
    finally:
        ended.cancel()
    return url


def _read_url(ready: Path) -> str | None:
    return msgspec.json.decode(ready.read_bytes(), type=_Ready).http if ready.exists() else None


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
