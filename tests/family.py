"""A process with a child, for tests of what is read about processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Says the pid of its child; then both wait for the end of their input.
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


@contextmanager
def family() -> Iterator[tuple[int, int]]:
    """The pids of parent and child."""
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
