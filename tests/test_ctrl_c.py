"""Ctrl-C before a command begins, and where Python drops what it raises: in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

DEADLINE_S = 60.0
SLOW_LIBRARY = "import sys; print('importing', flush=True); sys.stdin.read()"
DESTRUCTOR = """
import signal
from efserve import ctrl_c

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

ctrl_c.ends_at_once()
ctrl_c.raises()
try:
    Last()
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
IGNORED = """
import signal
from efserve import ctrl_c

signal.signal(signal.SIGINT, signal.SIG_IGN)
ctrl_c.ends_at_once()
assert not ctrl_c.raises()
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""


def printed_by(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout.strip()


def test_while_the_program_is_imported_it_ends_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SLOW_LIBRARY)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "efserve", "check"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE_S) == ("", "")
    assert process.returncode == 130


def test_one_that_a_destructor_dropped_comes_again() -> None:
    assert printed_by(DESTRUCTOR) == "interrupted"


def test_where_it_is_ignored_it_stays_so() -> None:
    assert printed_by(IGNORED) == "True"
