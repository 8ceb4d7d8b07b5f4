"""Shared memory that clients bring: POSIX segments by name, mapped when they are registered.

Whoever reads or writes a region holds its mapping, so it may be unregistered at any time. A segment that was cut short
after it was registered is noticed when it is used.
"""

import mmap
import os
import stat
from dataclasses import dataclass, field

from efserve.codec.regions import RegionPlace
from efserve.errors import InferenceFailed, InvalidRequest, NotFound, ServerError, Unsupported
from efserve.inference import Buffer

SEGMENTS = "/dev/shm"  # where Linux shows the names that shm_open knows
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a segment: `size_bytes` from `offset` on."""

    name: str
    key: str
    offset: int
    size_bytes: int
    memory: mmap.mmap = field(repr=False)  # of the segment from its beginning

    def range_of(self, place: RegionPlace) -> tuple[int, int]:
        """Where a place lies in `memory`; InvalidRequest when it is not all in the region, or no more there."""
        if place.offset >= self.size_bytes:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{self.name}'")
        if place.offset + place.size_bytes > self.size_bytes:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{self.name}'")
        start = self.offset + place.offset
        if start + place.size_bytes > self.memory.size():
            raise InvalidRequest(f"shared memory region '{self.name}' was cut short after it was registered")
        return start, start + place.size_bytes


@dataclass(frozen=True, slots=True)
class RegionWindow:
    """A part of a region to write to."""

    region: Region
    place: RegionPlace

    @property
    def size_bytes(self) -> int:
        """Most that it holds."""
        return self.place.size_bytes

    def write(self, data: Buffer) -> None:
        """Put the data to the front; InferenceFailed where it does not fit."""
        if len(data) > self.size_bytes:
            raise InferenceFailed(f"{len(data)} bytes do not fit {self.size_bytes} bytes of '{self.region.name}'")
        start, _ = self.region.range_of(self.place)
        self.region.memory[start : start + len(data)] = data


class ClientRegions:
    """The regions of all clients, by name."""

    def __init__(self, *, allowed: bool = False) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}

    def __repr__(self) -> str:
        return f"<ClientRegions {list(self._regions)}>"

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Map `size_bytes` from `offset` on of the segment that shm_open knows as `key`.

        Raises Unsupported where clients may not do so, ServerError for a segment that cannot be opened, and
        InvalidRequest for a name that is taken or a part that is not in the segment.
        """
        self.check_allowed()
        if name in self._regions:
            raise InvalidRequest(f"shared memory region '{name}' already in manager")
        fd = _open(key)
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise ServerError(f"Invalid shared memory region: '{key}'")
            if size_bytes < 1 or offset + size_bytes > facts.st_size:
                raise InvalidRequest(
                    f"failed to register shared memory region '{name}': invalid args: {size_bytes} bytes from offset "
                    f"{offset} on are not in '{key}', which has {facts.st_size}"
                )
            self._regions[name] = Region(name, key, offset, size_bytes, mmap.mmap(fd, offset + size_bytes))
        finally:
            os.close(fd)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; requests that use it are not disturbed. An unknown name is no error."""
        self.check_allowed()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def regions(self, name: str = "") -> list[Region]:
        """The region of that name, or all; NotFound."""
        if not name:
            return list(self._regions.values())
        if name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [self._regions[name]]

    def read(self, place: RegionPlace) -> memoryview:
        """The bytes at a place, without a copy."""
        region = self._find(place)
        start, end = region.range_of(place)
        return memoryview(region.memory)[start:end]

    def window(self, place: RegionPlace) -> RegionWindow:
        """The place, to write to it later."""
        region = self._find(place)
        region.range_of(place)
        return RegionWindow(region, place)

    def _find(self, place: RegionPlace) -> Region:
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{place.region}'")
        return region

    def check_allowed(self) -> None:
        """Raise Unsupported unless clients may register memory here."""
        if not self._allowed:
            raise Unsupported(DISABLED)


def _open(key: str) -> int:
    name = key.lstrip("/")
    if not name or "/" in name or "\0" in name:
        raise ServerError(f"Unable to open shared memory region: '{key}'")
    try:
        return os.open(f"{SEGMENTS}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ServerError(f"Unable to open shared memory region: '{key}'") from exc
