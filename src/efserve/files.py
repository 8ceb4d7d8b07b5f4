"""Files are written whole or not at all: whoever reads one sees the old content or the new."""

import os
from pathlib import Path

from efserve.errors import UsageError


def replace(path: Path, data: bytes) -> None:
    """Write a file, on the disk when this returns. Raises OSError; the old file is then as it was.

    What is no file, such as a device or a pipe, is written to and never replaced.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    target = path.resolve()  # behind a link, so that the link stays
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file that the user named, folders included; UsageError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, data)
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror or exc}") from exc
