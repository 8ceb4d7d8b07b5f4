"""Shared memory for the tensors of one slot: an anonymous file, written by one process and read by another.

Owns mapping and growth; knows neither tensors nor messages. The file only grows, so whoever needs bytes beyond its
mapping maps the file anew, and what was mapped before stays valid and shows the same bytes; it keeps the memory of the
largest batch. Nothing is ever unmapped by hand: a mapping ends with the last array over it, so letting go is clean.
"""

import mmap
import os

FIRST_BYTES = 1 << 20  # pages that nobody touched cost nothing


class Area:
    """A growable piece of shared memory; `map` is the mapping of the moment, whose slices are copies."""

    __slots__ = ("_fd", "map")

    def __init__(self, fd: int) -> None:
        """Map an existing area by its file descriptor, which belongs to the area from here on."""
        self._fd = fd
        self.map = mmap.mmap(fd, os.fstat(fd).st_size)

    @classmethod
    def create(cls) -> "Area":
        """A new area of zeros, without a name anywhere: it ends with the last process that holds it."""
        fd = os.memfd_create("efserve", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, FIRST_BYTES)
            return cls(fd)
        except OSError:
            os.close(fd)
            raise

    def __repr__(self) -> str:
        return f"<Area fd={self._fd} bytes={len(self.map)}>"

    def fileno(self) -> int:
        """The descriptor by which another process maps the same memory."""
        return self._fd

    def reserve(self, size_bytes: int) -> None:
        """Make room for `size_bytes`: to be called by the area's one writer. Copies nothing, invalidates nothing."""
        if size_bytes > len(self.map):
            os.ftruncate(self._fd, 1 << (size_bytes - 1).bit_length())
            self.reach(size_bytes)

    def reach(self, size_bytes: int) -> None:
        """See at least the first `size_bytes`, which the writer has reserved: to be called by the reader."""
        if size_bytes > len(self.map):
            self.map = mmap.mmap(self._fd, os.fstat(self._fd).st_size)

    def put(self, data: bytes) -> int:
        """Write `data` to the front of the area, as its writer; the number of bytes."""
        self.reserve(len(data))
        self.map[: len(data)] = data
        return len(data)

    def get(self, size_bytes: int) -> bytes:
        """The first `size_bytes` of the area, as its reader."""
        self.reach(size_bytes)
        return self.map[:size_bytes]

    def close(self) -> None:
        """Let go of the descriptor and the mapping; arrays over it stay valid and keep it until they are gone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            del self.map
