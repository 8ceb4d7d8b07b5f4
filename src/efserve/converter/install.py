"""Puts a finished model into a repository: all of it or nothing.

Files are made in a staging folder `.<model>.convert` inside the repository, so on its file system and out of sight of
whoever reads it (names that begin with a dot are no models), and moved into place by renames.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from efserve.errors import ConversionFailed, UsageError

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_REPLACED = "replaced"
_STOPPING = (signal.SIGINT, signal.SIGTERM)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of a write, which does not say to which file


@contextmanager
def staging(model_folder: Path) -> Iterator[Path]:
    """An empty folder beside the model's, ours alone and gone at the end; what a killed run left in it is removed.

    Raises ConversionFailed while another process converts the same model, UsageError where nothing can be written.
    """
    repository = model_folder.parent
    stage = repository / f".{model_folder.name}.convert"
    is_new = not repository.exists()
    try:
        repository.mkdir(parents=True, exist_ok=True)
        lock = _lock(stage)
    except BlockingIOError as exc:
        raise ConversionFailed(f"another process is converting model '{model_folder.name}'; wait for it") from exc
    except OSError as exc:
        raise UsageError(f"model repository {repository} cannot be written: {exc.strerror}") from exc
    try:
        _restore(stage, model_folder)
        for left in stage.iterdir():
            _remove(left)
        yield stage
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        raise UsageError(f"model repository {repository} cannot be written: {exc.strerror}") from exc
    finally:
        with signals_wait():
            shutil.rmtree(stage, ignore_errors=True)
            os.close(lock)
            if is_new:
                with suppress(OSError):  # not empty: the model is in it
                    repository.rmdir()


def _lock(stage: Path) -> int:
    """Descriptor of the folder, created and locked; the lock goes with the process, so a stale one cannot exist."""
    while True:
        stage.mkdir(exist_ok=True)
        descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(stage, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner removed it between our two calls


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def install(staged: Path, model_folder: Path, version: int) -> None:
    """Moves the staged model folder, or its one version and its files, to `model_folder`, replacing what is there.

    A new model appears by one rename. In an existing one the files come first, then the version folder, which is
    exchanged with its predecessor in one step; signals wait until both are done.
    """
    with signals_wait():
        if not model_folder.exists():
            staged.rename(model_folder)
            return
        for file in staged.iterdir():
            if file.is_file():
                file.replace(model_folder / file.name)
        _place(staged / str(version), model_folder / str(version), staged.parent / _REPLACED)


def _place(new: Path, target: Path, spare: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    try:
        _exchange(new, target)
    except OSError as exc:
        if exc.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        # No atomic exchange on this file system. Should we be killed between the renames, the next run restores.
        spare.mkdir()
        target.rename(spare / target.name)
        try:
            new.rename(target)
        except OSError:
            (spare / target.name).rename(target)
            raise


def _exchange(first: Path, second: Path) -> None:
    """Swaps two paths atomically (renameat2, Linux); raises OSError ENOSYS or EINVAL where that does not exist."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))


def _restore(stage: Path, model_folder: Path) -> None:
    """Puts a version back that a run killed between two renames has left in the staging folder."""
    spare = stage / _REPLACED
    for old in spare.iterdir() if spare.is_dir() else ():
        if not (model_folder / old.name).exists():
            old.rename(model_folder / old.name)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the end of the block, then lets them act.

    Not by a signal mask: that belongs to a thread, and the libraries' threads would still take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda got, _: arrived.append(got)) for number in _STOPPING}
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
        for number in arrived:
            signal.raise_signal(number)
