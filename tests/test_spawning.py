"""Real programs, started the way workers are."""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from efserve.worker.slices import LONG_MS, slice_ms
from efserve.worker.spawning import spawn

DEADLINE_S = 30.0


def said_by(script: str, text: bytes = b"", environment: dict[str, str] | None = None) -> tuple[str, int]:
    """What a shell prints, and how it ends; FD is a descriptor with a text for it."""
    with ExitStack() as stack:
        reader, writer = os.pipe()
        given, giver = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (reader, given, nothing):
            stack.callback(os.close, fd)
        os.write(giver, text)
        os.close(giver)
        command = ["/bin/sh", "-c", script.replace("FD", str(given))]
        standard = (nothing, writer, writer)
        pid = spawn(command, environment=environment or {}, standard=standard, fds=[given]).result(DEADLINE_S)
        os.close(writer)
        with open(reader, closefd=False) as output:
            said = output.read()
        return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def may_have_slices() -> bool:
    try:
        return slice_ms() > 0
    except OSError:
        return False


def test_a_program_has_what_it_is_given_and_nothing_else() -> None:
    assert said_by("cat /proc/self/fd/FD; echo $NAME; echo oh >&2; cat; exit 3", b"text ", {"NAME": "é=x"}) == (
        "text é=x\noh\n",
        3,
    )
    kept = os.open(os.devnull, os.O_RDONLY)
    try:
        assert said_by(f"test -e /proc/self/fd/{kept} || echo gone") == ("gone\n", 0)
    finally:
        os.close(kept)


def test_it_leads_a_session_and_minds_signals_that_python_ignores() -> None:
    said, _ = said_by("echo $$ $(cut -d' ' -f6 /proc/$$/stat); grep SigIgn /proc/$$/status")
    process, session, _, ignored = said.split()
    assert process == session != str(os.getsid(0))
    assert not int(ignored, 16) & 1 << 12  # SIGPIPE


@pytest.mark.skipif(not may_have_slices(), reason="this kernel tells of no slices")
def test_it_begins_with_long_slices() -> None:
    script = "from efserve.worker.slices import slice_ms; print(slice_ms())"
    said, _ = said_by(f"exec {sys.executable} -c '{script}'", environment=dict(os.environ))
    assert float(said) == LONG_MS


@pytest.mark.parametrize(
    ("program", "standard", "number"),
    [
        ("/nowhere/x", (9, 9, 9), errno.ENOENT),
        ("/bin/sh", (0, 9, 9), errno.EBADF),
        ("/bin/sh", (999, 9, 9), errno.EBADF),
    ],
)
def test_what_cannot_be_started_is_told(program: str, standard: Sequence[int], number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        first, second, third = (nothing if fd == 9 else fd for fd in standard)
        with pytest.raises(OSError, match=os.strerror(number) if "x" in program else "descriptor") as caught:
            spawn([program], environment={}, standard=(first, second, third), fds=()).result(DEADLINE_S)
        assert caught.value.errno == number
    finally:
        os.close(nothing)
