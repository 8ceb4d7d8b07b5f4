"""Programs that may hang or crash, run as child processes that are never waited for without a deadline.

A program that has not ended by then is killed with its children; how it ended is a value, never an exception.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_KILLED_S = 1.0  # for a killed program to have gone; one that waits for a driver may ignore even SIGKILL


@dataclass(frozen=True, slots=True)
class Ended:
    """What a program said; `problem` tells in a few words how it failed, and is empty where it did not."""

    stdout: str = ""
    stderr: str = ""
    problem: str = ""
    timed_out: bool = False
    code: int | None = None  # None: it could not be started, or did not end; negative: the signal that killed it


def run_all(commands: Mapping[str, Sequence[str]], deadline_s: float) -> dict[str, Ended]:
    """Runs all programs at once, without input."""

    async def run() -> list[Ended]:
        return await asyncio.gather(*(run_program(command, deadline_s) for command in commands.values()))

    return dict(zip(commands, asyncio.run(run()), strict=True))


async def run_program(
    command: Sequence[str],
    deadline_s: float,
    *,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> Ended:
    """Runs a program to its end; all that it prints goes to the file `output`, or into the answer."""
    with ExitStack() as stack:
        try:
            # Into memory or a file, for a daemon that the program leaves behind may hold a pipe for ever.
            sinks = [stack.enter_context(sink) for sink in _sinks(output)]
            process = _started(command, stdin, environment, sinks[0], sinks[-1])
            pidfd = os.pidfd_open(process.pid)
        except OSError as exc:
            return Ended(problem=f"cannot be started: {exc.strerror}")
        stack.callback(os.close, pidfd)
        try:
            has_ended = await _is_readable(pidfd, deadline_s)
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await _is_readable(pidfd, _KILLED_S)
                process.poll()
        problem = _how_it_ended(process.returncode) if has_ended else f"does not end within {deadline_s:g} s"
        stdout, stderr = _read(sinks[0]), "" if output else _read(sinks[1])
        return Ended(stdout, stderr, problem, not has_ended, process.returncode if has_ended else None)


def _sinks(output: Path | None) -> list[IO[bytes]]:
    """Where standard output goes, and errors if that is elsewhere."""
    if output is not None:
        return [output.open("w+b")]
    return [os.fdopen(os.memfd_create(name), "w+b") for name in ("stdout", "stderr")]


def _started(
    command: Sequence[str],
    stdin: str,
    environment: Mapping[str, str] | None,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> "subprocess.Popen[bytes]":
    """By vfork: the fork of an event loop with much memory would stop it for tens of milliseconds."""
    question, writer = os.pipe()
    try:
        os.write(writer, stdin.encode())  # a line fits a pipe; that a program ends before it reads it is no error
        os.close(writer)
        return subprocess.Popen(
            command,
            stdin=question,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal does not reach it, nor a daemon that it starts
        )
    finally:
        os.close(question)


async def _is_readable(descriptor: int, deadline_s: float) -> bool:
    """Waits for a process by its pidfd; False when the deadline came first."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(deadline_s):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ends with exit code {code}" if code else ""
    known = {each.value: each.name for each in signal.Signals}
    return f"is killed by {known.get(-code, f'signal {-code}')}"


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
