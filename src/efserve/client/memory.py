"""Shared memory of this client, for tensors that a server on the same machine reads and writes in place."""

import mmap
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from efserve.errors import UsageError

_FOLDER = Path("/dev/shm")  # where Linux keeps POSIX shared memory by its name
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Span:
    """The place of one tensor in a region that the server knows by its name."""

    region: str
    offset: int
    byte_size: int

    @property
    def parameters(self) -> dict[str, str | int]:
        """The parameters of the tensor in a request."""
        return {
            "shared_memory_region": self.region,
            "shared_memory_offset": self.offset,
            "shared_memory_byte_size": self.byte_size,
        }


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tensors of one request lie, in the order of the model's inputs and outputs."""

    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]


class SharedRegion:
    """A POSIX shared memory object, mapped here; it is gone when the block is left."""

    def __init__(self, byte_size: int) -> None:
        """Raises UsageError where there is not so much of it."""
        self.key = f"/efserve-{os.getpid()}-{next(_NUMBERS)}"
        self.name = self.key[1:]
        self.byte_size = byte_size
        self._path = _FOLDER / self.name
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise UsageError(f"no shared memory for tensors: {exc}") from exc
        try:
            os.posix_fallocate(fd, 0, byte_size)  # a full file system would else kill this process at a write
            self.map = mmap.mmap(fd, byte_size)
        except OSError as exc:
            self._path.unlink()
            raise UsageError(f"no shared memory for {byte_size} bytes of tensors: {exc.strerror}") from exc
        finally:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<SharedRegion {self.key} {self.byte_size}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        self.map.close()
