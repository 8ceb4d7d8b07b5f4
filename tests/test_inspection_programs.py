"""Programs that end, fail, hang, crash and leave children behind, each a real process."""

import sys

from efserve.inspection.programs import Ended, Program, run_all


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_each_program_tells_how_it_ended() -> None:
    programs = {
        "echo": Program(
            python("import os, sys; print(sys.stdin.read() + os.environ['GREETING'])"), "hello ", {"GREETING": "you"}
        ),
        "failed": Program(python("import sys; print('why', file=sys.stderr); sys.exit(3)")),
        "crashed": Program(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")),
        "missing": Program(("/no/such/program",)),
        "talkative": Program(python("print('x' * 1_000_000)")),
    }
    ended = run_all(programs, 60)
    assert ended["echo"] == Ended("hello you\n")
    assert ended["failed"] == Ended("", "why\n", "ends with exit code 3")
    assert ended["crashed"].problem == "is killed by SIGSEGV"
    assert ended["missing"].problem == "cannot be started: No such file or directory"
    assert len(ended["talkative"].stdout) == 1_000_001


def test_what_hangs_is_killed_with_its_children() -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(child.pid, flush=True)\n"
        "signal.pause()"
    )
    hung = run_all({"hung": Program(python(code))}, 2)["hung"]
    assert hung.problem == "does not end within 2 s"
    for pid in map(int, hung.stdout.split()):
        assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected by its parent does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123  # it may vanish between two calls
            return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_is_run_for_nothing() -> None:
    assert run_all({}, 1) == {}
