"""Programs that may hang or crash, run side by side under one deadline; none of them outlives the call."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

_REAP_S = 1.0  # a process that waits for a driver in the kernel may ignore even SIGKILL


@dataclass(frozen=True, slots=True)
class Program:
    """A command, what it reads from its standard input, and what its environment has beside ours."""

    command: Sequence[str]
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """What a program said; `problem` tells in a few words how it failed, and is empty where it did not."""

    stdout: str = ""
    stderr: str = ""
    problem: str = ""
    timed_out: bool = False


def run_all(programs: Mapping[str, Program], deadline_s: float) -> dict[str, Ended]:
    """Runs all programs at once; what has not ended by the deadline is killed."""
    end_s = time.monotonic() + deadline_s
    running: dict[str, _Running] = {}
    results: dict[str, Ended] = {}
    try:
        for name, program in programs.items():
            started = _start(program)
            if isinstance(started, Ended):
                results[name] = started
            else:
                running[name] = started
        for name, each in running.items():
            results[name] = _result(each, end_s, deadline_s)
    finally:
        for each in running.values():
            _kill(each.process)
            each.stdout.close()
            each.stderr.close()
    return results


@dataclass(frozen=True, slots=True)
class _Running:
    """Output goes to files: a pipe could be full, or held open by a child of the program."""

    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def _start(program: Program) -> _Running | Ended:
    stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # run_all closes them
    with tempfile.TemporaryFile() as stdin:
        stdin.write(program.stdin.encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                program.command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **program.environment},
                start_new_session=True,
            )
        except OSError as exc:
            stdout.close()
            stderr.close()
            return Ended(problem=f"cannot be started: {exc.strerror}")
    return _Running(process, stdout, stderr)


def _result(running: _Running, end_s: float, deadline_s: float) -> Ended:
    try:
        problem, timed_out = _how_it_ended(running.process.wait(max(0.0, end_s - time.monotonic()))), False
    except subprocess.TimeoutExpired:
        problem, timed_out = f"does not end within {deadline_s:g} s", True
    return Ended(_read(running.stdout), _read(running.stderr), problem, timed_out)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ends with exit code {code}" if code else ""
    known = {each.value: each.name for each in signal.Signals}
    return f"is killed by {known.get(-code, f'signal {-code}')}"


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
