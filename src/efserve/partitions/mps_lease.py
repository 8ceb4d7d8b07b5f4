"""Who uses a daemon that a server started: the last of them stops it.

The lease is a file in the daemon's pipe directory. That it exists says that a server started the daemon, not a person;
a shared lock on it says that a server uses it. The kernel drops the lock with its process, however that ends, so what
a killed server leaves is used and ended by the next one. `efserve mps start` removes the file: the daemon stays.
"""

import fcntl
import os
from pathlib import Path

from efserve.errors import MpsFailed

_NAME = "efserve-lease"


class Lease:
    """This process's use of a daemon, until it is given back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<Lease {self._path}>"

    def give_back(self) -> bool:
        """True where the daemon is now to be stopped: a server started it and no other uses it. May be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(descriptor).st_nlink > 0  # 0: a person has taken the daemon over, or ended it
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)


def take(pipe_directory: Path, *, new: bool) -> Lease | None:
    """Uses a daemon, which is `new` if this process has just started it; None where a person did, who is to stop it."""
    path = pipe_directory / _NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if new else 0), 0o600)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise MpsFailed(f"cannot write {path}: {exc.strerror}") from exc
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return Lease(path, descriptor)


def hand_to_a_person(pipe_directory: Path) -> None:
    """From now on the daemon runs until it is told to stop."""
    (pipe_directory / _NAME).unlink(missing_ok=True)
