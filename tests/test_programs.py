"""Programs that end, fail, hang, crash and leave children behind, each a real process."""

import asyncio
import os
import select
import sys
from pathlib import Path

from efserve.programs import Ended, run_all, run_program


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_each_program_tells_how_it_ended() -> None:
    commands = {
        "silent": python("import sys; sys.exit(len(sys.stdin.read()))"),
        "failed": python("import sys; print('why', file=sys.stderr); sys.exit(3)"),
        "crashed": python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        "missing": ("/no/such/program",),
        "talkative": python("print('x' * 1_000_000)"),
    }
    ended = run_all(commands, 60)
    assert ended["silent"] == Ended(code=0)
    assert ended["failed"] == Ended("", "why\n", "ends with exit code 3", code=3)
    assert ended["crashed"].problem == "is killed by SIGSEGV"
    assert ended["missing"].problem == "cannot be started: No such file or directory"
    assert len(ended["talkative"].stdout) == 1_000_001


def test_input_environment_and_a_file_for_all_output(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.stdin.read() + os.environ['GREETING'], file=sys.stderr)"
    program = run_program(
        python(code), 60, stdin="hello ", environment={**os.environ, "GREETING": "you"}, output=tmp_path / "log"
    )
    assert asyncio.run(program) == Ended("hello you\n", code=0)
    assert (tmp_path / "log").read_text() == "hello you\n"


def test_what_hangs_is_killed_with_its_children() -> None:
    hung = run_all({"hung": ("sh", "-c", "sleep 1000 & echo $!; wait")}, 2)["hung"]
    assert (hung.timed_out, hung.code) == (True, None)
    assert hung.problem == "does not end within 2 s"
    assert ends(int(hung.stdout))


def ends(pid: int) -> bool:
    """Whether a process ends within a deadline; death by a signal takes its moment."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 30)[0])
    finally:
        os.close(descriptor)


def test_nothing_is_run_for_nothing() -> None:
    assert run_all({}, 1) == {}
